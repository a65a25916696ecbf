"""What a method is: the signals that it needs, its score, its default selector, its defaults and its source.

Each method is one file of `curation_assets.scores.methods`, which `curation_assets.methods.registry` finds by
itself. CONTRIBUTING.md has the checklist, and tests/methods/test_methods.py runs it over all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from curation_assets.methods.selector import AnySelector
from curation_assets.methods.vectors import matrix
from curation_resources.scoring.gradient_spec import GradientWeights
from curation_resources.scoring.spec import Template
from curation_resources.sections import Name, Section, SignalName
from curation_resources.training.recipe import Recipe


class ScoreSection(Section):
    """A named score: a method with its parameters, computed from a target's signals."""

    name: Name
    target: str = Field(description="whose signals it is computed from")
    method: str
    min_steps: int = Field(0, ge=0, description="traces with fewer steps are not eligible for selection")


@dataclass(frozen=True)
class ScoreInputs:
    """What a method may look at: samples that are measured, each once.

    Attributes:
        samples: facts of each sample: the columns of table `sample_scores` beside the scores.
        signals: by name, rows of the signals that the method asked for, in any order, with at least the columns
            that it reads.
        validation: vectors [M, d] of the validation sets that the method asked for, by name.
        steps: whether scores of steps are wanted too; then the signals have all their columns.
    """

    samples: pl.DataFrame
    signals: Mapping[SignalName, pl.DataFrame] = field(default_factory=dict)
    steps: bool = True
    validation: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """What a method makes of samples.

    Attributes:
        values: sample_id and value; a sample without a value, or that is missing, has no score.
        steps: rows of table `step_scores`, of a method that scores steps.
    """

    values: pl.DataFrame
    steps: pl.DataFrame | None = None


@dataclass(frozen=True)
class TrainingRun:
    """The run that trained a target's checkpoint.

    Attributes:
        recipe: its hyper-parameters.
        fraction: share of the pool that it was trained on.
        release: the release that it was trained on instead, if any.
        save_every: optimizer steps between its checkpoints, or "epoch"; None if it keeps only the last one.
    """

    recipe: Recipe
    fraction: float
    release: str | None
    save_every: int | str | None


@dataclass(frozen=True)
class TargetFacts:
    """The settings of a target that decide whether a score is faithful to its source.

    Attributes:
        template: how prompts are rendered.
        warmup: the run that trained the checkpoint; None for the base model.
        gradient_weights: the weights that gradients are taken with respect to.
        gradient_dimension: length of gradient features.
        directional: whether samples are measured at directional perturbed checkpoints.
        reasoning_only: whether early losses end before the answer.
    """

    template: Template
    warmup: TrainingRun | None
    gradient_weights: GradientWeights
    gradient_dimension: int
    directional: bool
    reasoning_only: bool


@dataclass(frozen=True)
class Method:
    """A method of docs/methods.md.

    Attributes:
        name: as configurations name it.
        source: paper and equation, or `ours`.
        summary: what a high value means, in a line.
        section: its parameters with their defaults.
        signals: what must be measured for given parameters.
        score: the score of each sample; only what a sample gives by itself, never what needs the whole pool.
        reads: of each of these signals, the columns that the score of a sample is made from.
        selector: how it chooses, unless a subset says otherwise.
        validation: names of the validation sets that its score compares with.
        measured_of_validation: signals of these sets, if they are not those of the samples.
        vectors: the signal with the embeddings that its selector looks at, if it looks at any.
        to_vectors: of its rows, or of those of a validation set, none null, the vectors [n, d].
        highest_first: whether the best samples have the highest score.
        cost: in the units of the GRAPE paper's Table 13: N samples, forward cost F.
        unfaithful: what parts a target and parameters from the source; empty if nothing does.
        scores_steps: whether it gives `step_scores`.
    """

    name: str
    source: str
    summary: str
    section: type[ScoreSection]
    signals: Callable[[Any], tuple[SignalName, ...]]
    score: Callable[[ScoreInputs, Any], Scored]
    selector: AnySelector
    reads: Mapping[SignalName, tuple[str, ...]] = field(default_factory=dict)
    validation: Callable[[Any], tuple[str, ...]] = lambda _section: ()
    measured_of_validation: Callable[[Any], tuple[SignalName, ...]] | None = None
    vectors: SignalName | None = None
    to_vectors: Callable[[pl.DataFrame], NDArray[np.float32]] = lambda rows: matrix(rows["vector"])
    highest_first: bool = True
    cost: str = "N F"
    unfaithful: Callable[[TargetFacts, Any], Sequence[str]] = lambda _target, _section: ()
    scores_steps: bool = False

    def validation_signals(self, section: ScoreSection) -> tuple[SignalName, ...]:
        """The signals that are measured of validation sets; the first one's are the vectors that are compared with."""
        return (self.measured_of_validation or self.signals)(section)


def values(frame: pl.DataFrame, value: pl.Expr) -> Scored:
    """Scores that are an expression over the rows of one frame with a sample_id."""
    return Scored(frame.select("sample_id", value=value.cast(pl.Float64)))
