"""Uncertainty of the predicted distributions: mean entropy, least confidence, mean margin."""

from __future__ import annotations

from typing import Literal

import polars as pl
from pydantic import Field

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection, values
from curation_assets.methods.selectors.top import Top
from curation_assets.tables.signals import SignalName

SOURCE = "uncertainty sampling; over the response's tokens, or as in the released code (parity)"


class UncertaintyScore(ScoreSection):
    """Common parameters of the uncertainty methods."""

    parity: Literal["paper", "as_coded"] = Field(
        "paper",
        description="as_coded: compute over all positions of the sequence, including the prompt and the one after the "
        "last token, with margin and least confidence of raw logits",
    )


class MeanEntropyScore(UncertaintyScore):
    """Mean entropy: mean_t H(p_t), in nats."""

    method: Literal["mean_entropy"] = "mean_entropy"


class LeastConfidenceScore(UncertaintyScore):
    """Least confidence: mean_t (1 - max p_t)."""

    method: Literal["least_confidence"] = "least_confidence"


class MeanMarginScore(UncertaintyScore):
    """Mean margin: mean_t (p1 - p2); the lowest are the most uncertain."""

    method: Literal["mean_margin"] = "mean_margin"


AS_CODED = {
    "mean_entropy": pl.col("entropy"),
    "least_confidence": 1.0 - pl.col("largest_logit"),
    "mean_margin": pl.col("logit_margin"),
}


def _signals(section: UncertaintyScore) -> tuple[SignalName, ...]:
    return ("likelihoods",) if section.parity == "paper" else ("sequence_uncertainty",)


def _score(inputs: ScoreInputs, section: UncertaintyScore) -> Scored:
    value = pl.col(section.method) if section.parity == "paper" else AS_CODED[section.method]
    (signal,) = _signals(section)
    return values(inputs.signals[signal], value)


METHODS = [
    Method(
        name=name,
        source=SOURCE,
        summary=summary,
        section=section,
        signals=_signals,
        reads={"likelihoods": (name,), "sequence_uncertainty": tuple(AS_CODED[name].meta.root_names())},
        score=_score,
        selector=Top(),
        highest_first=name != "mean_margin",
    )
    for name, summary, section in (
        ("mean_entropy", "entropy of the predicted distributions", MeanEntropyScore),
        ("least_confidence", "1 - the largest predicted probability", LeastConfidenceScore),
        ("mean_margin", "gap between the two largest predicted probabilities; lowest first", MeanMarginScore),
    )
]
