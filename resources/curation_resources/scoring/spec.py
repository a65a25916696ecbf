"""The specification of a pass, as plain data that is sent to worker processes and needs no torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from curation_resources.scoring.images import ImageLimits

Template = Literal["auto", "chat", "plain", "question_answer", "alpaca"]

RadiusUnit = Literal["absolute", "distance"]
"""Radii of perturbed checkpoints are absolute, or fractions of the endpoint's distance from the base."""

PROJECTIONS = ("q", "k", "v", "o")
"""Attention projections, in the order in which gradient spectra list them."""

SOURCE_RADII = tuple(1.0 + 9.0 * step / 7.0 for step in range(8))
"""linspace(1, 10, 8): distances of TEMP's directional checkpoints from the base (arXiv 2606.26797)."""


@dataclass(frozen=True)
class ProcessSpec:
    """The texts by which a process reward model reads steps: see `curation_resources.models.process_reward`.

    Attributes:
        separator: the token after each step, at which its reward is read.
        step_format: a step with its separator.
        label: the label of right steps, for a token classifier.
        good: the token that stands for a right step, for a language model.
        bad: the token that stands for a wrong step.
    """

    separator: str = "<extra_0>"
    step_format: str = "{step}{separator}"
    label: int = 1
    good: str | None = None
    bad: str | None = None


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
        images: limits for images.
        kind: `embedding`: a sentence-transformers model (`models.embedder`); `reward`: a reward model
            (`curation_resources.models.reward`); `process_reward`: a process reward model (`models.process_reward`).
        process: how a process reward model reads steps.
        trajectory: folders of a training run's intermediate checkpoints, in the order of their steps: LoRA folders over
            the model if there is an adapter, else whole models (`curation_resources.training.trajectory`).
        trajectory_weights: weights of these checkpoints, for methods that weigh them (LESS).
        trained_on: table of the training run's samples with their influence (`training.trainer.TrainingRecord`).
        base: the model that the training run started from, if the model folder is its result.
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
    kind: Literal["language", "embedding", "reward", "process_reward"] = "language"
    process: ProcessSpec = field(default_factory=ProcessSpec)
    trajectory: tuple[Path, ...] = ()
    trajectory_weights: tuple[float, ...] = ()
    base: Path | None = None
    trained_on: Path | None = None


@dataclass(frozen=True)
class PerturbedSpec:
    """A base model to measure at perturbed checkpoints: see `curation_resources.scoring.perturbed`.

    Attributes:
        base: the model at theta_0 and the settings that it is measured under; without an adapter.
        endpoint: fine-tuned endpoint theta_f that defines the direction: a model folder, or a LoRA folder over the
            base;
            None: no directional checkpoints.
        seed: seed of all noise.
        radii: distances of the directional checkpoints from the base, ascending.
        radius_unit: unit of the radii.
    """

    base: PassSpec
    endpoint: Path | None = None
    seed: int = 0
    radii: tuple[float, ...] = SOURCE_RADII
    radius_unit: RadiusUnit = "absolute"


@dataclass(frozen=True)
class Sampling:
    """Settings for sampling tokens.

    Attributes:
        temperature: divides the logits.
        top_p: sample only from the likeliest tokens with this total probability; 1: from all.
        seed: seed of all draws.

    Raises:
        ValueError: the temperature is not above 0 (use greedy decoding instead), or top_p is not a share.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise ValueError(f"temperature {self.temperature} is not above 0. Set a positive one, such as 0.7.")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p {self.top_p} is not a share. Set one above 0 and at most 1, such as 0.95.")

    def numbers(self, name: str, count: int) -> npt.NDArray[np.float64]:
        """Return the uniform numbers [count] of an answer, each in [0, 1); a larger count only appends further ones."""
        key = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(count)
