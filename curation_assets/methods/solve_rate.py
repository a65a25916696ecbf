"""Solve rate: how often a model solves a prompt. See docs/methods.md, "Solve rate".

Filters by difficulty, such as LIMO's (arXiv 2502.03387), keep prompts with a low solve rate, so the lowest come first.
"""

from __future__ import annotations

from typing import Literal

import polars as pl

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection, values
from curation_assets.methods.selectors.top import Top


class SolveRateScore(ScoreSection):
    """Solve rate: share of a model's answers to the prompt that equal the row's answer; lowest first."""

    method: Literal["solve_rate"] = "solve_rate"


def _solve_rate(inputs: ScoreInputs, _section: ScoreSection) -> Scored:
    return values(inputs.signals["solve_rate"].drop_nulls("solve_rate"), pl.col("solve_rate"))


METHODS = [
    Method(
        name="solve_rate",
        source="difficulty by a model's own answers, as in LIMO's filter, arXiv 2502.03387: methods.md",
        summary="share of a model's answers to the prompt that are right",
        section=SolveRateScore,
        signals=lambda _section: ("solve_rate",),
        reads={"solve_rate": ("solve_rate",)},
        score=_solve_rate,
        selector=Top(),
        highest_first=False,
        cost="N answers",
    )
]
