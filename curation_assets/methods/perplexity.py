"""Perplexity bands: samples that a reference checkpoint finds easy, medium or hard."""

from __future__ import annotations

from typing import Literal

import polars as pl
from pydantic import Field

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection, values
from curation_assets.methods.selectors.band import Band
from curation_assets.tables.signals import SignalName


class PerplexityScore(ScoreSection):
    """Perplexity: exp(mean NLL of the response)."""

    method: Literal["perplexity"] = "perplexity"
    span: Literal["completion", "all"] = Field(
        "completion", description="all: compute over the whole sequence, including the prompt, as in the released code"
    )


NLL: dict[SignalName, str] = {"likelihoods": "mean_nll", "sequence_likelihoods": "sequence_nll"}


def _signals(section: PerplexityScore) -> tuple[SignalName, ...]:
    return ("likelihoods",) if section.span == "completion" else ("sequence_likelihoods",)


def _score(inputs: ScoreInputs, section: PerplexityScore) -> Scored:
    (signal,) = _signals(section)
    return values(inputs.signals[signal], pl.col(NLL[signal]).exp())


METHODS = [
    Method(
        name="perplexity",
        source="perplexity-based pruning: low, middle or high band at a reference checkpoint",
        summary="perplexity under the target",
        section=PerplexityScore,
        signals=_signals,
        reads={signal: (column,) for signal, column in NLL.items()},
        score=_score,
        selector=Band(),
        cost="C(ref, D_ref, 1) + N F_ref",
    )
]
