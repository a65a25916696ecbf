"""In-run influence: the effect of a training run's steps on the loss of validation samples.

See docs/methods.md, "In-run influence".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import polars as pl
from pydantic import Field

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection, TargetFacts, values
from curation_assets.methods.selectors.top import Top


class InRunScore(ScoreSection):
    """In-run influence: sum over the steps of the target's run of lr <g_val, g_i>, for the sets in
    `warmup.influence`."""

    method: Literal["in_run"] = "in_run"
    aggregate: Literal["max", "mean"] = Field("max", description="aggregation over the sets")


def _score(inputs: ScoreInputs, section: InRunScore) -> Scored:
    rows = inputs.signals["in_run_influence"].drop_nulls("influence")
    own = pl.col("influence").list
    return values(rows, own.max() if section.aggregate == "max" else own.mean())


def _unfaithful(target: TargetFacts, _section: InRunScore) -> Sequence[str]:
    if target.warmup is None:
        return []
    reasons = []
    if target.warmup.fraction < 1.0 or target.warmup.release is not None:
        reasons.append("the run uses part of the pool: samples it was not trained on have no score")
    if target.warmup.recipe.epochs != 1:
        reasons.append(f"the run trains {target.warmup.recipe.epochs} epochs on the pool")
    return reasons


METHODS = [
    Method(
        name="in_run",
        source="In-Run Data Shapley, arXiv 2406.11011, first order",
        summary="how much the sample's training steps lowered the loss of validation samples",
        section=InRunScore,
        signals=lambda _section: ("in_run_influence",),
        reads={"in_run_influence": ("influence",)},
        score=_score,
        selector=Top(),
        cost="C(theta, D, 1)",
        unfaithful=_unfaithful,
    )
]
