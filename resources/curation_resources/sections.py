"""Building blocks for sections of `curation.yaml`: the base class, names and errors with a location."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[
    str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=100, description="lower-case letters, digits and _")
]

SignalName = Literal[
    "step_gradients",
    "likelihoods",
    "segment_likelihoods",
    "sequence_likelihoods",
    "token_likelihoods",
    "unconditional_likelihoods",
    "embeddings_mean",
    "embeddings_last",
    "embeddings_position_weighted",
    "text_embeddings",
    "loss_trajectories",
    "step_gradient_trajectories",
    "base_likelihoods",
    "perturbed_losses",
    "gradient_spectra",
    "gradient_norms",
    "gradient_features",
    "gradient_feature_trajectories",
    "adam_feature_trajectories",
    "in_run_influence",
    "rewards",
    "instruction_tags",
    "difficulty",
]

ALONG_A_RUN: tuple[SignalName, ...] = (
    "loss_trajectories",
    "step_gradient_trajectories",
    "gradient_feature_trajectories",
    "adam_feature_trajectories",
)
"""Signals that are measured at the intermediate checkpoints of a training run."""


Kind = Literal["language", "embedding", "reward", "judge"]
"""The kind of model behind a target: causal language model, embedding model, reward model or LLM judge."""

OF_KIND: dict[Kind, tuple[SignalName, ...]] = {
    "embedding": ("text_embeddings",),
    "reward": ("rewards",),
    "judge": ("instruction_tags", "difficulty"),
}
"""Signals that are specific to one kind of target; all other signals belong to language models."""


def unknown(kind: str, name: str, known: Iterable[str], plural: str | None = None) -> str:
    """Return the error message for an unknown name, with the closest match or else all known names."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"{plural or kind + 's'} are {', '.join(names) or '(none)'}"
    return f"there is no {kind} {name!r}; {hint}"


class LocatedError(ValueError):
    """An error at a known location below the section that detected it."""

    def __init__(self, location: list[int | str], message: str) -> None:
        super().__init__(message)
        self.location = location


class Section(BaseModel):
    """A section of the file: unknown keys are errors, and values are immutable after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
