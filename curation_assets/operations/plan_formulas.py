"""The cost of each method by itself, after GRAPE's Table 13 (arXiv 2502.04194), as text and as numbers.

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
class Formula:
    """The cost of a method: making its checkpoints, and scoring with them.

    Attributes:
        checkpoint: cost of the checkpoints, as text.
        scoring: cost of scoring, as text.
        cost: returns both for given sizes, in F, or in F_ref if the text says so.
    """

    checkpoint: str
    scoring: str
    cost: Callable[[Sizes], tuple[int | Fraction, int | Fraction]]


def training(samples: int, epochs: int = 1) -> int:
    """Return C(theta, D, T) = 3 |D| T, in forward passes of the trained model."""
    return GRADIENT * samples * epochs


_WARMUP = "C(theta_lora, D_warmup, T)"
_ONE_PASS = Formula("0", "N F", lambda sizes: (0, sizes.samples))
_LORA_GRADIENTS = Formula(
    _WARMUP,
    "3 T N F",
    lambda sizes: (training(sizes.warmup, sizes.epochs), GRADIENT * sizes.epochs * sizes.samples),
)

FORMULAS: dict[str, Formula] = {
    "grape": _ONE_PASS,
    "embeddings": _ONE_PASS,
    "uncertainty": _ONE_PASS,
    "less": _LORA_GRADIENTS,
    "tagcos": _LORA_GRADIENTS,
    # The gradients of the training run itself give the scores.
    "in_run": Formula("C(theta, D, 1)", "0", lambda sizes: (training(sizes.data), 0)),
    "grand": Formula(
        "m C(theta, D, 1)",
        "3 m N F",
        lambda sizes: (sizes.inits * training(sizes.data), GRADIENT * sizes.inits * sizes.samples),
    ),
    "el2n": Formula(
        "m C(theta, D, 1)",
        "m N F",
        lambda sizes: (sizes.inits * training(sizes.data), sizes.inits * sizes.samples),
    ),
    "perplexity": Formula(
        "C(theta_ref, D_ref, 1)", "N F_ref", lambda sizes: (training(sizes.reference_data), sizes.samples)
    ),
    # The loss before and after training.
    "learnability": Formula("C(theta, D, 1)", "2 N F", lambda sizes: (training(sizes.data), 2 * sizes.samples)),
    "s2l": Formula(
        "C(theta_ref, D, T)",
        "T N F_ref",
        lambda sizes: (training(sizes.data, sizes.epochs), sizes.epochs * sizes.samples),
    ),
    # GRACE (arXiv 2605.13130).
    "grace": Formula("C(theta_lora, D_warmup, 1)", "N F", lambda sizes: (training(sizes.warmup), sizes.samples)),
    # TEMP (arXiv 2606.26797): each checkpoint runs only the prompt and the first tokens of the response.
    "temp": Formula(
        "C(theta_end, D_warmup, 1)",
        "p T N F",
        lambda sizes: (training(sizes.warmup), sizes.prefix * sizes.epochs * sizes.samples),
    ),
    # IFD (arXiv 2308.12032): the second pass, over the response alone, costs less than one F.
    "ifd": Formula("0", "2 N F", lambda sizes: (0, 2 * sizes.samples)),
    # Gradient spectra (arXiv 2504.10766): a forward and a backward pass at the base model.
    "spectra": Formula("0", "3 N F", lambda sizes: (0, GRADIENT * sizes.samples)),
    "random": Formula("0", "0", lambda _sizes: (0, 0)),
}
"""Formulas by method: those of Table 13, and GRACE, TEMP, IFD, EL2N, spectra and Random in its units."""

PLAIN: dict[str, Formula] = {formula.scoring: formula for formula in map(FORMULAS.__getitem__, ("grape", "ifd"))}
"""Formulas without checkpoints, by the text of their cost."""


def formula_of(name: str, cost: str) -> Formula | None:
    """Look up the formula of a registered method by its name, else by the text of its cost; None if there is none."""
    if cost == "0":
        return FORMULAS["random"]
    return FORMULAS.get(name) or PLAIN.get(cost)
