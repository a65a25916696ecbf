"""What sections of `curation.yaml` are made of, wherever they are defined: base class, names, located errors."""

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
"""Signals that are measured at the checkpoints that a training run left on its way."""


Kind = Literal["language", "embedding", "reward", "judge"]
"""What a target is: a causal language model, an embedding model, a reward model, or a model that is asked."""

OF_KIND: dict[Kind, tuple[SignalName, ...]] = {
    "embedding": ("text_embeddings",),
    "reward": ("rewards",),
    "judge": ("instruction_tags", "difficulty"),
}
"""Signals that only a target of this kind has; all others are a language model's."""


def unknown(kind: str, name: str, known: Iterable[str], plural: str | None = None) -> str:
    """What to say of a name that is none: the one that was probably meant, else all that there are."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"{plural or kind + 's'} are {', '.join(names) or '(none)'}"
    return f"there is no {kind} {name!r}; {hint}"


class LocatedError(ValueError):
    """A mistake that lies at a known place below the section that found it."""

    def __init__(self, location: list[int | str], message: str) -> None:
        super().__init__(message)
        self.location = location


class Section(BaseModel):
    """A section of the file: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
