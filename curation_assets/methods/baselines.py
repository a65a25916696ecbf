"""Baselines for comparison with any selection: Random, Longest, Stepmax (arXiv 2605.13130, section 5)."""

from __future__ import annotations

from typing import Literal

import polars as pl
from pydantic import Field

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection, values
from curation_assets.methods.random_draws import uniform
from curation_assets.methods.selectors.top import Top


class RandomScore(ScoreSection):
    """Random: a draw per sample from its id and the seed, independent of the other samples."""

    method: Literal["random"] = "random"
    seed: int = Field(0, ge=0, lt=2**63)


class LongestScore(ScoreSection):
    """Longest: number of response tokens."""

    method: Literal["longest"] = "longest"


class StepmaxScore(ScoreSection):
    """Stepmax: number of response steps."""

    method: Literal["stepmax"] = "stepmax"


def _random(inputs: ScoreInputs, section: RandomScore) -> Scored:
    return Scored(inputs.samples.select("sample_id", value=uniform(inputs.samples["sample_id"], section.seed)))


def _longest(inputs: ScoreInputs, _section: LongestScore) -> Scored:
    return values(inputs.samples, pl.col("response_tokens"))


def _stepmax(inputs: ScoreInputs, _section: StepmaxScore) -> Scored:
    return values(inputs.samples, pl.col("n_steps"))


METHODS = [
    Method(
        name=name,
        source="baseline of GRACE, arXiv 2605.13130",
        summary=summary,
        section=section,
        signals=lambda _section: (),
        score=score,
        selector=Top(),
        cost="0",
    )
    for name, summary, section, score in (
        ("random", "seeded random number between 0 and 1", RandomScore, _random),
        ("longest", "number of response tokens", LongestScore, _longest),
        ("stepmax", "number of response steps", StepmaxScore, _stepmax),
    )
]
