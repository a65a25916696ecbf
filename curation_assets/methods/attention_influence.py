"""AttentionInfluence: how much the loss of a response rises without the model's retrieval heads.

See docs/methods.md, "AttentionInfluence".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import polars as pl

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


class AttentionInfluenceScore(ScoreSection):
    """AttentionInfluence: relative rise of the response's loss when the target's retrieval heads are masked."""

    method: Literal["attention_influence"] = "attention_influence"


def _rise(base: str, masked: str) -> pl.Expr:
    """Return (L_masked - L) / L; null where L is 0."""
    return pl.when(pl.col(base) > 0.0).then((pl.col(masked) - pl.col(base)) / pl.col(base))


def _score(inputs: ScoreInputs, _section: AttentionInfluenceScore) -> Scored:
    rows = inputs.signals["attention_influence"].drop_nulls("masked_nll")
    scored = values(rows, _rise("base_nll", "masked_nll"))
    if not inputs.steps:
        return scored
    measured = ("segment_base", "segment_masked")
    return Scored(scored.values, steps_of_segments(rows, measured, _rise(*measured)))


def _unfaithful(_target: TargetFacts, _section: AttentionInfluenceScore) -> Sequence[str]:
    return [
        "the source scores pretraining documents with a 1.3B model, not responses given their prompts",
        "the source compares scores within a domain only: use standardise: source or stratify: [source]",
        "the retrieval task has random words as values, and its prompts are ours",
    ]


METHODS = [
    Method(
        name="attention_influence",
        source="AttentionInfluence, arXiv 2505.07293",
        summary="relative rise of the loss without the model's retrieval heads",
        section=AttentionInfluenceScore,
        signals=lambda _section: ("attention_influence",),
        reads={"attention_influence": ("base_nll", "masked_nll")},
        score=_score,
        selector=Top(),
        cost="2 N F",
        unfaithful=_unfaithful,
        scores_steps=True,
    )
]
