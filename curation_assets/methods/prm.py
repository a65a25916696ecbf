"""Process rewards: a process reward model's probabilities that the steps are right, aggregated.

See docs/methods.md, "Process reward models".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import polars as pl
from pydantic import Field

from curation_assets import tables
from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection, TargetFacts, values
from curation_assets.methods.selectors.top import Top

AGGREGATES = {
    "min": pl.col("rewards").list.min(),
    "mean": pl.col("rewards").list.mean(),
    "last": pl.col("rewards").list.last(),
    "product": pl.col("rewards").list.eval(pl.element().product()).list.first(),
}


class PrmScore(ScoreSection):
    """Process rewards: probabilities that the steps and the answer are right, aggregated over the response."""

    method: Literal["prm"] = "prm"
    aggregate: Literal["min", "mean", "last", "product"] = Field(
        "min", description="aggregation of the rewards of steps and answer into the sample's score"
    )


def _score(inputs: ScoreInputs, section: PrmScore) -> Scored:
    rows = inputs.signals["process_rewards"].drop_nulls("rewards")
    scored = values(rows, AGGREGATES[section.aggregate])
    if not inputs.steps:
        return scored
    # The answer's tokens and reward, which come last, belong to no step.
    steps = pl.col("step_indices").list.len()
    own = rows.select(
        "sample_id",
        step_index="step_indices",
        tokens=pl.col("segment_tokens").list.head(steps),
        step_score=pl.col("rewards").list.head(steps),
    ).explode("step_index", "tokens", "step_score")
    nothing = pl.lit(None, pl.Float64)
    own = own.with_columns(answer_alignment=nothing, trajectory_consistency=nothing)
    return Scored(scored.values, tables.STEP_SCORES.conform(own))


def _unfaithful(_target: TargetFacts, _section: PrmScore) -> Sequence[str]:
    return ["the steps are those of our segmentation, not those that the model was trained on"]


METHODS = [
    Method(
        name="prm",
        source="process reward models: Math-Shepherd, arXiv 2312.08935; Qwen2.5-Math-PRM, arXiv 2501.07301",
        summary="probability that the steps are right",
        section=PrmScore,
        signals=lambda _section: ("process_rewards",),
        reads={"process_rewards": ("rewards",)},
        score=_score,
        selector=Top(),
        cost="N F_reward",
        unfaithful=_unfaithful,
        scores_steps=True,
    )
]
