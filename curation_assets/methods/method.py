"""Definition of a method: its signals, score, default selector, parameters and source.

Each method is one module of `curation_assets.methods`, which `curation_assets.methods.registry` discovers.
CONTRIBUTING.md has the checklist, and tests/methods/test_methods.py checks every method against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from curation_assets import tables
from curation_assets.methods.selectors.candidates import SelectorSection
from curation_assets.methods.vectors import matrix
from curation_assets.tables.signals import SignalName
from curation_resources.scoring.gradient_spec import GradientWeights
from curation_resources.scoring.spec import Template
from curation_resources.sections import Name, Section
from curation_resources.training.recipe import Recipe


class ScoreSection(Section):
    """A named score: a method with its parameters, computed from a target's signals."""

    name: Name
    target: str = Field(description="target whose signals the score is computed from")
    method: str
    min_steps: int = Field(0, ge=0, description="samples with fewer steps are not eligible for selection")


@dataclass(frozen=True)
class ScoreInputs:
    """The inputs of a method: measured samples, each once.

    Attributes:
        samples: facts of each sample: the columns of table `sample_scores` except the scores.
        signals: by name, the rows of the signals that the method requested, in any order, with at least the columns
            that it reads.
        validation: by name, the vectors [M, d] of the validation sets that the method requested.
        steps: whether to score steps as well; the signals then have all their columns.
    """

    samples: pl.DataFrame
    signals: Mapping[SignalName, pl.DataFrame] = field(default_factory=dict)
    steps: bool = True
    validation: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """The result of a method.

    Attributes:
        values: sample_id and value; a sample that is missing or has no value has no score.
        steps: rows of table `step_scores`, for a method that scores steps.
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
        name: name in the configuration.
        source: paper and equation, or `ours`.
        summary: the meaning of a high value, in one line.
        section: the parameters with their defaults.
        signals: signals required by given parameters.
        score: computes the score of each sample; it may only use the sample itself, never the whole pool.
        reads: the columns of these signals that a sample's score is computed from.
        selector: default selector of its subsets.
        selector_by: returns the default selector for parameters that need another one, else None.
        validation: names of the validation sets that the score compares with.
        measured_of_validation: signals of these sets, if they differ from the samples'.
        vectors: the signal with the embeddings for its selector, if it uses any.
        to_vectors: converts rows of that signal, without nulls, to vectors [n, d].
        highest_first: whether the best samples have the highest score.
        cost: in the units of the GRAPE paper's Table 13: N samples, forward cost F.
        unfaithful: returns how a target and parameters deviate from the source; empty if they do not.
        scores_steps: whether it provides `step_scores`.
    """

    name: str
    source: str
    summary: str
    section: type[ScoreSection]
    signals: Callable[[Any], tuple[SignalName, ...]]
    score: Callable[[ScoreInputs, Any], Scored]
    selector: SelectorSection
    reads: Mapping[SignalName, tuple[str, ...]] = field(default_factory=dict)
    validation: Callable[[Any], tuple[str, ...]] = lambda _section: ()
    measured_of_validation: Callable[[Any], tuple[SignalName, ...]] | None = None
    vectors: SignalName | None = None
    to_vectors: Callable[[pl.DataFrame], NDArray[np.float32]] = lambda rows: matrix(rows["vector"])
    highest_first: bool = True
    cost: str = "N F"
    unfaithful: Callable[[TargetFacts, Any], Sequence[str]] = lambda _target, _section: ()
    scores_steps: bool = False
    selector_by: Callable[[Any], SelectorSection | None] = lambda _section: None

    def default_selector(self, section: ScoreSection) -> SelectorSection:
        """Return the selector of subsets that name none."""
        return self.selector_by(section) or self.selector

    def validation_signals(self, section: ScoreSection) -> tuple[SignalName, ...]:
        """Return the signals measured on validation sets; the first provides the vectors to compare with."""
        return (self.measured_of_validation or self.signals)(section)


def values(frame: pl.DataFrame, value: pl.Expr) -> Scored:
    """Return scores given by an expression over the rows of one frame with a sample_id."""
    return Scored(frame.select("sample_id", value=value.cast(pl.Float64)))


def steps_of_segments(rows: pl.DataFrame, measured: Sequence[str], score: pl.Expr) -> pl.DataFrame:
    """Return rows of table `step_scores` from lists over segments, of which the answer's comes last and is no step.

    Args:
        rows: `sample_id`, `step_indices` [K], and lists over segments [K or K + 1]: `segment_tokens`, and `measured`.
        measured: columns that the score is computed from.
        score: the score of a step, by these columns.
    """
    lists = ["tokens", *measured]
    own = rows.select("sample_id", *measured, step_index="step_indices", tokens="segment_tokens")
    own = own.with_columns(pl.col(lists).list.head(pl.col("step_index").list.len()))
    own = own.explode("step_index", *lists).drop_nulls("step_index")
    nothing = pl.lit(None, pl.Float64)
    made = own.with_columns(step_score=score, answer_alignment=nothing, trajectory_consistency=nothing)
    return tables.STEP_SCORES.conform(made.select(tables.STEP_SCORES.columns.keys()))
