"""The baselines that stand beside any selection: Random, Longest, Stepmax (arXiv 2605.13130, section 5)."""

from __future__ import annotations

from typing import Literal

import polars as pl
from pydantic import Field

from curation_assets.draws import uniform
from curation_assets.scores.method import Method, Scored, ScoreInputs, ScoreSection, values
from curation_assets.subsets.selector import Top

SOURCE = "baseline of GRACE, arXiv 2605.13130"


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
        name="random",
        source=SOURCE,
        summary="a seeded draw between 0 and 1",
        section=RandomScore,
        signals=lambda _section: (),
        score=_random,
        selector=Top(),
        cost="0",
    ),
    Method(
        name="longest",
        source=SOURCE,
        summary="tokens of the response",
        section=LongestScore,
        signals=lambda _section: (),
        score=_longest,
        selector=Top(),
        cost="0",
    ),
    Method(
        name="stepmax",
        source=SOURCE,
        summary="steps of the response",
        section=StepmaxScore,
        signals=lambda _section: (),
        score=_stepmax,
        selector=Top(),
        cost="0",
    ),
]
