"""Perplexity bands: samples that a reference checkpoint finds easy, middling or hard."""

from __future__ import annotations

from typing import Literal

import polars as pl

from curation_assets.scores.method import Method, Scored, ScoreInputs, ScoreSection, values
from curation_assets.subsets.selector import Band


class PerplexityScore(ScoreSection):
    """Perplexity: exp(mean NLL of the response)."""

    method: Literal["perplexity"] = "perplexity"


def _score(inputs: ScoreInputs, _section: PerplexityScore) -> Scored:
    return values(inputs.signals["likelihoods"], pl.col("mean_nll").exp())


METHODS = [
    Method(
        name="perplexity",
        source="perplexity-based pruning: low, middle or high band at a reference checkpoint",
        summary="perplexity of the response under the target",
        section=PerplexityScore,
        signals=lambda _section: ("likelihoods",),
        reads={"likelihoods": ("mean_nll",)},
        score=_score,
        selector=Band(),
        cost="C(ref, D_ref, 1) + N F_ref",
    )
]
