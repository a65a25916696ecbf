"""GRACE: alignment of each step's gradient with the answer's and with earlier steps' (arXiv 2605.13130).

Parameters and data frames are here; the arithmetic on Gram matrices is in `curation_assets.methods.grace_gram`.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal

import polars as pl
from pydantic import Field, model_validator

from curation_assets import tables
from curation_assets.methods.grace_gram import (
    Aggregate,
    GramOptions,
    History,
    Reduce,
    Reference,
    sample_and_step_scores,
)
from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection, TargetFacts
from curation_assets.methods.selectors.top import Top


class GraceScore(ScoreSection):
    """GRACE: V = mean over steps of alpha * answer alignment + (1 - alpha) * trajectory consistency."""

    method: Literal["grace"] = "grace"
    alpha: float = Field(0.7, ge=0, le=1, description="weight of answer alignment; consistency gets the rest")
    history: History | Literal["uniform"] = "uniform"
    history_normalize_steps: bool = Field(False, description="scale earlier steps to unit norm before summing them")
    align_with: Reference = Field(
        "answer", description="reference for alignment: the answer, the whole response, or the segments after the step"
    )
    aggregate: Aggregate = Field("mean", description="aggregation of step scores into the sample's score")
    quantile: float = Field(0.1, ge=0, le=1, description="quantile to use with aggregate: quantile")
    segment_reduce: Reduce = Field(
        "mean", description="whether a step's gradient is the mean or the sum over its tokens"
    )
    checkpoints: Literal["last", "all"] = Field(
        "last", description="all: average over the intermediate checkpoints of the target's training run (save_every)"
    )
    preset: Literal["paper"] | None = Field(None, description="paper: min_steps 8")
    min_steps: int = Field(2, ge=0, description="traces with fewer steps are not eligible for selection")

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("preset") == "paper":
            return {"min_steps": 8} | data
        return data

    def options(self) -> GramOptions:
        """Return the parameters of the Gram arithmetic."""
        names = GramOptions.__dataclass_fields__
        return GramOptions(**{name: getattr(self, name) for name in names})


def grace_scores(step_gradients: pl.DataFrame, section: GraceScore, steps: bool = True) -> Scored:
    """Return V of every measured sample and, on request, the scores of its steps.

    Args:
        step_gradients: rows of the table; rows without a matrix are skipped.
        section: the parameters.
        steps: whether to return the table `step_scores` as well.
    """
    measured = step_gradients
    if measured["gram"].null_count():
        measured = measured.filter(pl.col("gram").is_not_null())
    found = sample_and_step_scores(
        measured["gram"], measured["n_steps"].to_numpy(), measured["segment_tokens"], section.options(), steps
    )
    values = measured.select("sample_id", value=pl.Series(found.sample, dtype=pl.Float64))
    if found.steps is None:
        return Scored(values)
    # Step rows follow each other by sample; the answer's tokens come last within a sample.
    own = measured.select(
        "sample_id", step_index="step_indices", tokens=pl.col("segment_tokens").list.head(pl.col("n_steps"))
    ).explode("step_index", "tokens")
    rows = own.with_columns(
        answer_alignment=pl.Series(found.steps.answer_alignment),
        trajectory_consistency=pl.Series(found.steps.trajectory_consistency).fill_nan(None),
        step_score=pl.Series(found.steps.step_score),
    )
    return Scored(values, tables.STEP_SCORES.conform(rows))


def mean_over_checkpoints(trajectories: pl.DataFrame, section: GraceScore, steps: bool = True) -> Scored:
    """Return V and step scores averaged over checkpoints; see `grace_scores`.

    Args:
        trajectories: rows of `step_gradient_trajectories`, all with the same number of checkpoints.
        section: the parameters.
        steps: whether to return the table `step_scores` as well.
    """
    measured = trajectories.filter(pl.col("grams").is_not_null())
    checkpoints = len(measured["grams"][0]) if len(measured) else 1
    scored = [
        grace_scores(measured.with_columns(gram=pl.col("grams").list.get(place, null_on_oob=True)), section, steps)
        for place in range(checkpoints)
    ]
    of_steps = [one.steps for one in scored if one.steps is not None]
    columns = ("answer_alignment", "trajectory_consistency", "step_score")
    return Scored(_mean([one.values for one in scored], ["value"]), _mean(of_steps, columns) if of_steps else None)


def _mean(frames: Sequence[pl.DataFrame], columns: Sequence[str]) -> pl.DataFrame:
    """Return the mean of columns over frames with the same rows."""
    return frames[0].with_columns(
        (reduce(operator.add, (frame[column] for frame in frames)) / len(frames)).alias(column) for column in columns
    )


def _score(inputs: ScoreInputs, section: GraceScore) -> Scored:
    if section.checkpoints == "all":
        return mean_over_checkpoints(inputs.signals["step_gradient_trajectories"], section, inputs.steps)
    return grace_scores(inputs.signals["step_gradients"], section, inputs.steps)


def _unfaithful(target: TargetFacts, _section: GraceScore) -> Sequence[str]:
    if target.warmup is None:
        return ["no warm-up: the paper measures after one, and its result drops from 106.6 to 89.6 without"]
    return []


METHODS = [
    Method(
        name="grace",
        source="arXiv 2605.13130, Eq. 6-9 and 11-13",
        summary="agreement of the steps' gradients with the answer's and with those of earlier steps",
        section=GraceScore,
        signals=lambda section: (
            ("step_gradient_trajectories",) if section.checkpoints == "all" else ("step_gradients",)
        ),
        reads={
            "step_gradients": ("n_steps", "gram", "segment_tokens"),
            "step_gradient_trajectories": ("n_steps", "grams", "segment_tokens"),
        },
        score=_score,
        selector=Top(),
        cost="C(lora, D_warmup, 1) + N F",
        unfaithful=_unfaithful,
        scores_steps=True,
    )
]
