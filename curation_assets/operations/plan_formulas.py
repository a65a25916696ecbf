"""The cost model of GRAPE's Table 13 (arXiv 2502.04194): the cost of each method by itself, as numbers and as text.

The unit is F, the forward pass of one sample through the model that is curated for; F_ref is that of a reference
model. A backward pass costs 2 F, a gradient 3 F, and training C(theta, D, T) = 3 |D| T F.
`curation_assets.operations.plan` computes the cost of signals that share one pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

GRADIENT = 3
"""Cost of a gradient in forward passes: one forward pass, plus a backward pass at twice its price."""


@dataclass(frozen=True)
class Sizes:
    """The sizes that the formulas are evaluated at.

    Attributes:
        samples: N, the samples that are scored.
        trained: |D|, the samples that a model is trained on; None: all N.
        warmup: |D_warmup|, the samples of a warm-up.
        reference: |D_ref|, the samples that a reference model is trained on; None: all N.
            epochs: T, the epochs of training, and the number of checkpoints that are used.
            inits: m, the number of initialisations to average over.
            prefix: p, the fraction of a sample's tokens in its prompt and the prefix of its response.
    """

    samples: int
    trained: int | None = None
    warmup: int = 0
    reference: int | None = None
    epochs: int = 1
    inits: int = 1
    prefix: Fraction = Fraction(1)

    @property
    def data(self) -> int:
        """Return |D|."""
        return self.samples if self.trained is None else self.trained

    @property
    def reference_data(self) -> int:
        """Return |D_ref|."""
        return self.samples if self.reference is None else self.reference


@dataclass(frozen=True)
class Passes:
    """An exact number of forward passes: `own` in F, `reference` in F_ref."""

    own: Fraction = Fraction(0)
    reference: Fraction = Fraction(0)

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.own + other.own, self.reference + other.reference)


@dataclass(frozen=True)
class MethodCost:
    """The cost of a method at given sizes: making its checkpoints, and scoring with them."""

    checkpoint: Passes
    scoring: Passes

    @property
    def total(self) -> Passes:
        """The cost of both parts together."""
        return self.checkpoint + self.scoring


@dataclass(frozen=True)
class Formula:
    """A method's cost: both parts as text, and as a function of the sizes."""

    checkpoint: str
    scoring: str
    cost: Callable[[Sizes], MethodCost]


def training(samples: int, epochs: int = 1) -> int:
    """Return C(theta, D, T) = 3 |D| T, in forward passes of the trained model."""
    return GRADIENT * samples * epochs


def grape(sizes: Sizes) -> MethodCost:
    """GRAPE: the likelihood of each response under the base model."""
    return MethodCost(_own(0), _own(sizes.samples))


def less(sizes: Sizes) -> MethodCost:
    """LESS, and TAGCOS (gradient matching): a gradient of each sample at each of T checkpoints of a LoRA warm-up."""
    return MethodCost(_own(training(sizes.warmup, sizes.epochs)), _own(GRADIENT * sizes.epochs * sizes.samples))


def in_run(sizes: Sizes) -> MethodCost:
    """In-run influence: one epoch of training on everything; its gradients give the scores."""
    return MethodCost(_own(training(sizes.data)), _own(0))


def gradient_norm(sizes: Sizes) -> MethodCost:
    """GraNd: a gradient of each sample early in each of m runs."""
    checkpoints = sizes.inits * training(sizes.data)
    return MethodCost(_own(checkpoints), _own(GRADIENT * sizes.inits * sizes.samples))


def one_pass(sizes: Sizes) -> MethodCost:
    """Embeddings and simple indicators of uncertainty: one forward pass at the base model."""
    return MethodCost(_own(0), _own(sizes.samples))


def perplexity(sizes: Sizes) -> MethodCost:
    """Perplexity under a reference model trained on part of the data."""
    return MethodCost(_reference(training(sizes.reference_data)), _reference(sizes.samples))


def learnability(sizes: Sizes) -> MethodCost:
    """Learnability: the loss before and after one epoch of training on everything."""
    return MethodCost(_own(training(sizes.data)), _own(2 * sizes.samples))


def loss_trajectory(sizes: Sizes) -> MethodCost:
    """S2L: the loss of each sample at each of T checkpoints of a small reference model."""
    checkpoints = training(sizes.data, sizes.epochs)
    return MethodCost(_reference(checkpoints), _reference(sizes.epochs * sizes.samples))


def grace(sizes: Sizes) -> MethodCost:
    """GRACE (arXiv 2605.13130): one forward pass after a one-epoch LoRA warm-up on a fraction of the data."""
    return MethodCost(_own(training(sizes.warmup)), _own(sizes.samples))


def early_loss(sizes: Sizes) -> MethodCost:
    """TEMP (arXiv 2606.26797): the loss of prefixes only, with an endpoint that was fine-tuned on D_end.

    Each of the T checkpoints runs only the prompt and the first tokens of the response: `Sizes.prefix` of a pass.
    """
    return MethodCost(_own(training(sizes.warmup)), _own(sizes.prefix * sizes.epochs * sizes.samples))


def instruction_difficulty(sizes: Sizes) -> MethodCost:
    """IFD (arXiv 2308.12032): the response with its prompt, then alone; the second pass costs less than one F."""
    return MethodCost(_own(0), _own(2 * sizes.samples))


def gradient_pass(sizes: Sizes) -> MethodCost:
    """Gradient spectra (arXiv 2504.10766): one forward and backward pass at the base model."""
    return MethodCost(_own(0), _own(GRADIENT * sizes.samples))


def no_model(_sizes: Sizes) -> MethodCost:
    """Random and similar methods: no model is run."""
    return MethodCost(_own(0), _own(0))


def _own(passes: int | Fraction) -> Passes:
    return Passes(own=Fraction(passes))


def _reference(passes: int) -> Passes:
    return Passes(reference=Fraction(passes))


_WARMUP = "C(theta_lora, D_warmup, T)"
_ONE_PASS = Formula("0", "N F", one_pass)

FORMULAS: dict[str, Formula] = {
    "grape": Formula("0", "N F", grape),
    "less": Formula(_WARMUP, "3 T N F", less),
    "tagcos": Formula(_WARMUP, "3 T N F", less),
    "in_run": Formula("C(theta, D, 1)", "0", in_run),
    "grand": Formula("m C(theta, D, 1)", "3 m N F", gradient_norm),
    "embeddings": _ONE_PASS,
    "uncertainty": _ONE_PASS,
    "perplexity": Formula("C(theta_ref, D_ref, 1)", "N F_ref", perplexity),
    "learnability": Formula("C(theta, D, 1)", "2 N F", learnability),
    "s2l": Formula("C(theta_ref, D, T)", "T N F_ref", loss_trajectory),
    "grace": Formula("C(theta_lora, D_warmup, 1)", "N F", grace),
    "temp": Formula("C(theta_end, D_warmup, 1)", "p T N F", early_loss),
    "ifd": Formula("0", "2 N F", instruction_difficulty),
    "spectra": Formula("0", "3 N F", gradient_pass),
    "random": Formula("0", "0", no_model),
}
"""Formulas by method: those of Table 13, and GRACE, TEMP, IFD and Random in its units."""

PLAIN: dict[str, Formula] = {formula.scoring: formula for formula in map(FORMULAS.__getitem__, ("grape", "ifd"))}
"""Formulas without checkpoints, by the text of their cost."""


def formula_of(name: str, cost: str) -> Formula | None:
    """Look up the formula of a registered method by its name, else by the text of its cost; None if there is none."""
    if cost == "0":
        return FORMULAS["random"]
    return FORMULAS.get(name) or PLAIN.get(cost)
