"""What a pass is made from, as plain data: it travels to worker processes and loads no torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from curation_resources.scoring.images import ImageLimits

Template = Literal["auto", "chat", "plain", "question_answer"]

RadiusUnit = Literal["absolute", "distance"]
"""Radii of perturbed checkpoints as they are, or as fractions of the endpoint's distance from the base."""

PROJECTIONS = ("q", "k", "v", "o")
"""Of attention, in the order in which gradient spectra list them."""

SOURCE_RADII = tuple(1.0 + 9.0 * step / 7.0 for step in range(8))
"""linspace(1, 10, 8): how far TEMP's directional checkpoints lie from the base (arXiv 2606.26797)."""


@dataclass(frozen=True)
class PassSpec:
    """A checkpoint and the settings that it is measured under.

    Attributes:
        model_folder: the base model.
        adapter: LoRA folder to apply to it, or None.
        dtype: `float32`, `bfloat16` or `float16`, of the weights.
        template: see `curation_resources.scoring.encoding.Encoder`.
        max_length: longest sequence in tokens; None for the model's context.
        trust_remote_code: run Python code that the model folder ships.
        batch_tokens: token budget of a batch, padding included.
        head_memory: bytes that the streamed LM head may use for logits; None: see `curation_resources.scoring.head`.
        attention: attention implementation, or `auto`.
        compile_model: compile the model before the first batch.
        images: what an image may be.
        kind: `embedding`: it is a sentence-transformers model (`models.embedder`); `reward`: a reward model
            (`curation_resources.models.reward`).
        trajectory: folders of the checkpoints that a training run left on its way, in the order of their steps: LoRA
            folders over the model if there is an adapter, else whole models (`curation_resources.training.trajectory`).
        trajectory_weights: of these, what each counts where checkpoints are weighed (LESS).
        trained_on: table of what the training run came to say of its samples (`training.trainer.TrainingRecord`).
        base: the model that the training run started with, where the model folder is what came out of it.
    """

    model_folder: Path
    adapter: Path | None = None
    dtype: str = "float32"
    template: Template = "auto"
    max_length: int | None = None
    trust_remote_code: bool = False
    batch_tokens: int = 8192
    head_memory: int | None = None
    attention: str = "auto"
    compile_model: bool = False
    images: ImageLimits = field(default_factory=ImageLimits)
    kind: Literal["language", "embedding", "reward"] = "language"
    trajectory: tuple[Path, ...] = ()
    trajectory_weights: tuple[float, ...] = ()
    base: Path | None = None
    trained_on: Path | None = None


@dataclass(frozen=True)
class PerturbedSpec:
    """A base model whose losses are measured at perturbed checkpoints: see `curation_resources.scoring.perturbed`.

    Attributes:
        base: the model at theta_0 and the settings that it is measured under; without an adapter.
        endpoint: fine-tuned endpoint theta_f that gives the direction: a model folder, or a LoRA folder over the base;
            None: there are no directional checkpoints.
        seed: of all noise.
        radii: distances of the directional checkpoints from the base, ascending.
        radius_unit: what the radii are in.
    """

    base: PassSpec
    endpoint: Path | None = None
    seed: int = 0
    radii: tuple[float, ...] = SOURCE_RADII
    radius_unit: RadiusUnit = "absolute"


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: logits are divided by it.
        top_p: only the likeliest tokens that hold so much of the probability are drawn from; 1: all are.
        seed: of all draws.

    Raises:
        ValueError: a temperature of 0 or less (ask greedily instead), or a share that is none.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise ValueError(f"temperature {self.temperature}: give one above 0, as in 0.7")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p {self.top_p}: give a share above 0 and of at most 1, as in 0.95")

    def numbers(self, name: str, count: int) -> npt.NDArray[np.float64]:
        """The uniform numbers [count] of an answer, each in [0, 1): the first ones are the same for any count."""
        key = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(count)
