"""Selector `random`: a random sample, whatever the score."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from curation_assets.methods.random_draws import uniform
from curation_assets.methods.selectors.candidates import Candidates, Keys, Selector, SelectorSection


class Random(SelectorSection):
    """Select at random, regardless of the score."""

    kind: Literal["random"] = "random"
    seed: int = Field(0, ge=0, lt=2**63)


def _rank(selector: Random, found: Candidates) -> Keys:
    return Keys(uniform(found.pool["sample_id"], selector.seed).to_numpy())


SELECTORS = [Selector(Random, rank=_rank, reads=frozenset())]
