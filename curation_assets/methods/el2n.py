"""EL2N: norm of the error p - y of a response's predictions (arXiv 2107.07075)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import polars as pl

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection, TargetFacts, values
from curation_assets.methods.selectors.top import Top


class El2nScore(ScoreSection):
    """EL2N: mean over the response's tokens of the norm of p - y, at the target's checkpoint, for one run."""

    method: Literal["el2n"] = "el2n"


def _score(inputs: ScoreInputs, _section: El2nScore) -> Scored:
    return values(inputs.signals["error_norms"], pl.col("error_norm"))


def _unfaithful(target: TargetFacts, _section: El2nScore) -> Sequence[str]:
    return ["errors are measured at the model before any training"] if target.warmup is None else []


METHODS = [
    Method(
        name="el2n",
        source="EL2N, arXiv 2107.07075, Definition 2.2; one run, mean over tokens (ours)",
        summary="norm of the error of the predicted distributions",
        section=El2nScore,
        signals=lambda _section: ("error_norms",),
        reads={"error_norms": ("error_norm",)},
        score=_score,
        selector=Top(),
        cost="m C + m N F",
        unfaithful=_unfaithful,
    )
]
