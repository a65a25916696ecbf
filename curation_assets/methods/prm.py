"""Process rewards: a process reward model's probabilities that the steps are right, aggregated.

See docs/methods.md, "Process reward models".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import polars as pl
from pydantic import Field

from curation_assets.methods.method import (
    Method,
    Scored,
    ScoreInputs,
    ScoreSection,
    TargetFacts,
    steps_of_segments,
    values,
)
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
    return Scored(scored.values, steps_of_segments(rows, ["rewards"], pl.col("rewards")))


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
