"""Recipes: the hyper-parameters of a fine-tuning run, and named presets from the papers (docs/methods.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

Adapter = Literal["lora", "full"]
Schedule = Literal["cosine", "linear", "constant"]
Likelihood = Literal["none", "current"]
Normalise = Literal["none", "mean1"]


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters of a run. The defaults are those of GRACE's SFT (arXiv 2605.13130).

    Attributes:
        adapter: `lora` trains an adapter, `full` every weight.
        lora_rank: r.
        lora_alpha: the adapter's product is scaled by alpha / r.
        lora_dropout: dropout on the adapter's inputs.
        lora_modules: names of the linear layers to adapt; empty: all but the LM head.
        learning_rate: the peak learning rate.
        schedule: decay after the warm-up: to 0 by a cosine or linearly, or constant.
        warmup_ratio: share of the steps in which the rate rises from 0, rounded up; never all of them.
        epochs: passes over the samples.
        max_steps: number of optimizer steps, in which the schedule ends; None: as many as the epochs take.
        stop_after: number of optimizer steps after which the run ends, inside a schedule that is made for all of its
            steps; None: it does not stop before the schedule ends.
        batch_size: samples per optimizer step; micro-batches follow from memory and do not change the result.
        length_grouped: samples of similar length share a batch.
        max_grad_norm: gradients are clipped to this norm; 0: never.
        weight_decay: AdamW's, for weights with two or more dimensions.
        beta1: AdamW's.
        beta2: AdamW's.
        epsilon: AdamW's, outside the root.
        likelihood_weights: `current`: weight each token's loss by its probability under the model in training
            (token-level GRAPE; docs/methods.md, "GRAPE"); no gradient flows through the weight.
        normalise: `mean1`: scale these weights to mean 1 within a sample.
        seed: seeds the order of samples, the adapter's initialization and dropout.
    """

    adapter: Adapter = "lora"
    lora_rank: int = 8
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_modules: tuple[str, ...] = ()
    learning_rate: float = 1e-4
    schedule: Schedule = "cosine"
    warmup_ratio: float = 0.05
    epochs: int = 1
    max_steps: int | None = None
    batch_size: int = 16
    length_grouped: bool = False
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    likelihood_weights: Likelihood = "none"
    normalise: Normalise = "none"
    seed: int = 0
    stop_after: int | None = None

    def facts(self) -> dict[str, Any]:
        """Return the hyper-parameters that identify a run; `stop_after` only if it is set, as it came later."""
        return {name: value for name, value in vars(self).items() if name != "stop_after" or value is not None}

    def share_of_rate(self, step: int, total: int) -> float:
        """Return the learning rate after a step, as a share of the peak, in a schedule of `total` steps."""
        rising = self.rising_steps(total)
        if step < rising:
            return step / max(1, rising)
        progress = (step - rising) / max(1, total - rising)
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * progress)) if self.schedule == "cosine" else max(0.0, 1.0 - progress)

    def rising_steps(self, total: int) -> int:
        """Return the number of steps in which the rate rises, in a schedule of `total` steps."""
        # The first of them has a rate of 0, so a run with a single step would train nothing.
        return min(math.ceil(self.warmup_ratio * total), total - 1)


GRACE = Recipe()
TEMP = Recipe()
GRAPE = Recipe(adapter="full", learning_rate=1e-5, warmup_ratio=0.0, batch_size=256)
S2L = Recipe(adapter="full", learning_rate=2e-5, warmup_ratio=0.03, epochs=4, batch_size=128)
LESS = Recipe(
    lora_rank=128,
    lora_alpha=512,
    lora_dropout=0.1,
    lora_modules=("q_proj", "k_proj", "v_proj", "o_proj"),
    learning_rate=2e-5,
    schedule="linear",
    warmup_ratio=0.03,
    epochs=4,
    batch_size=128,
)

TAGCOS = replace(LESS, stop_after=30)

PRESETS: dict[str, Recipe] = {
    "grace": GRACE,
    "temp": TEMP,
    "grape": GRAPE,
    "s2l": S2L,
    "less": LESS,
    "tagcos": TAGCOS,
}
"""Recipes by the name of their method.

grace: LoRA of all linear layers, one epoch (the paper's SFT). temp: the same, for a target without a given endpoint
(our
choice: the source assumes a fine-tuned model). grape: full fine-tuning, one epoch, lr 1e-5, batch 256 (arXiv
2502.04194). s2l: full fine-tuning of a small reference model, four epochs, batch 128, cosine 2e-5, 3 % warm-up. less:
LoRA r 128 on the attention's projections, dropout 0.1, four epochs, linear 2e-5. tagcos: the same, stopped after 30
steps, while the rate still rises.
"""


def recipe_of(preset: str, **changes: Any) -> Recipe:
    """Return a preset with some hyper-parameters changed; None keeps the preset's value.

    Raises:
        KeyError: there is no such preset.
    """
    return replace(PRESETS[preset], **{name: value for name, value in changes.items() if value is not None})
