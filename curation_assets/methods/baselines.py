"""The baselines that stand beside any selection: Random, Longest, Stepmax (arXiv 2605.13130, section 5)."""

from __future__ import annotations

from typing import Literal

import polars as pl
from pydantic import Field

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection, values
from curation_assets.methods.random_draws import uniform
from curation_assets.methods.selector import Top


class RandomScore(ScoreSection):
    """Random: a draw of each sample by its id and the seed, so that it does not depend on what else is there."""

    method: Literal["random"] = "random"
    seed: int = Field(0, ge=0, lt=2**63)


class LongestScore(ScoreSection):
    """Longest: tokens of the response."""

    method: Literal["longest"] = "longest"


class StepmaxScore(ScoreSection):
    """Stepmax: steps of the response."""

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
        ("random", "a seeded draw between 0 and 1", RandomScore, _random),
        ("longest", "tokens of the response", LongestScore, _longest),
        ("stepmax", "steps of the response", StepmaxScore, _stepmax),
    )
]
