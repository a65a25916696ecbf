"""GRAPE: the response to each prompt that the base model finds likeliest (arXiv 2502.04194)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import polars as pl

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection, TargetFacts, values
from curation_assets.methods.selectors.per_prompt import PerPrompt


class GrapeScore(ScoreSection):
    """GRAPE: score(y|x) = mean log p(y_t | x, y_<t) over the response's tokens."""

    method: Literal["grape"] = "grape"


def _score(inputs: ScoreInputs, _section: GrapeScore) -> Scored:
    return values(inputs.signals["likelihoods"], -pl.col("mean_nll"))


def _unfaithful(target: TargetFacts, _section: GrapeScore) -> Sequence[str]:
    reasons = [] if target.warmup is None else ["measured after a warm-up: GRAPE scores with the base model itself"]
    if target.template != "question_answer":
        reasons.append("the template differs from the paper's (template: question_answer)")
    return reasons


METHODS = [
    Method(
        name="grape",
        source="arXiv 2502.04194, section 3",
        summary="mean log-likelihood of the response: how well it fits the base model",
        section=GrapeScore,
        signals=lambda _section: ("likelihoods",),
        reads={"likelihoods": ("mean_nll",)},
        score=_score,
        selector=PerPrompt(),
        unfaithful=_unfaithful,
    )
]
