"""Uncertainty of the predicted distributions: mean entropy, least confidence, mean margin."""

from __future__ import annotations

from typing import Literal

import polars as pl

from curation_assets.scores.method import Method, Scored, ScoreInputs, ScoreSection, values
from curation_assets.subsets.selector import Top

SOURCE = "uncertainty sampling; probabilities on the response's tokens"


class MeanEntropyScore(ScoreSection):
    """Mean entropy: mean_t H(p_t), in nats."""

    method: Literal["mean_entropy"] = "mean_entropy"


class LeastConfidenceScore(ScoreSection):
    """Least confidence: mean_t (1 - max p_t)."""

    method: Literal["least_confidence"] = "least_confidence"


class MeanMarginScore(ScoreSection):
    """Mean margin: mean_t (p1 - p2); the lowest are the most uncertain."""

    method: Literal["mean_margin"] = "mean_margin"


def _column(inputs: ScoreInputs, section: ScoreSection) -> Scored:
    return values(inputs.signals["likelihoods"], pl.col(section.method))


METHODS = [
    Method(
        name=name,
        source=SOURCE,
        summary=summary,
        section=section,
        signals=lambda _section: ("likelihoods",),
        reads={"likelihoods": (name,)},
        score=_column,
        selector=Top(),
        highest_first=name != "mean_margin",
    )
    for name, summary, section in (
        ("mean_entropy", "entropy of the predicted distributions", MeanEntropyScore),
        ("least_confidence", "1 - the largest predicted probability", LeastConfidenceScore),
        ("mean_margin", "gap between the two largest predicted probabilities; lowest first", MeanMarginScore),
    )
]
