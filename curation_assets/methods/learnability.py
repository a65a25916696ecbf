"""Learnability: samples that a model has not learnt yet but learns when trained.

See docs/methods.md, "Checkpoints".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import polars as pl
from pydantic import Field

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection, TargetFacts, values
from curation_assets.methods.selectors.top import Top


class LearnabilityScore(ScoreSection):
    """Learnability: L(theta) - L(theta_ref), the loss of the target's model before and after its training run."""

    method: Literal["learnability"] = "learnability"
    relative: bool = Field(False, description="divide by L(theta)")


def _score(inputs: ScoreInputs, section: LearnabilityScore) -> Scored:
    before = inputs.signals["base_likelihoods"].select("sample_id", "base_nll")
    rows = inputs.signals["likelihoods"].select("sample_id", "mean_nll").join(before, on="sample_id", how="inner")
    fall = pl.col("base_nll") - pl.col("mean_nll")
    # A zero loss leaves nothing to learn: no relative fall, and no division by 0.
    relative = pl.when(pl.col("base_nll") > 0.0).then(fall / pl.col("base_nll"))
    return values(rows, relative if section.relative else fall)


def _unfaithful(target: TargetFacts, _section: LearnabilityScore) -> Sequence[str]:
    if target.warmup is not None and target.warmup.release is not None:
        return [f"theta_ref is trained on release {target.warmup.release}, not on the whole pool"]
    if target.warmup is not None and target.warmup.fraction < 1.0:
        return [f"theta_ref is trained on {target.warmup.fraction:.0%} of the pool, not on all of it"]
    return []


METHODS = [
    Method(
        name="learnability",
        source="reducible loss: L(theta) - L(theta_ref), theta_ref trained on the full pool",
        summary="decrease of the loss from the base model to one trained on the pool",
        section=LearnabilityScore,
        signals=lambda _section: ("base_likelihoods", "likelihoods"),
        reads={"base_likelihoods": ("base_nll",), "likelihoods": ("mean_nll",)},
        score=_score,
        selector=Top(),
        cost="C(theta, D, 1) + 2 N F",
        unfaithful=_unfaithful,
    )
]
