"""Selector `random`: a random sample, whatever the score."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from curation_assets.methods.random_draws import uniform
from curation_assets.methods.selectors.candidates import Candidates, Choice, Selector, SelectorSection, ascending


class Random(SelectorSection):
    """Select at random, regardless of the score."""

    kind: Literal["random"] = "random"
    seed: int = Field(0, ge=0, lt=2**63)


def _random(selector: Random, found: Candidates) -> Choice:
    places = np.flatnonzero(found.may)
    drawn = uniform(found.pool["sample_id"].gather(places), selector.seed).to_numpy()
    return Choice(places[ascending(drawn, found.pool["sample_id"], places, found.limit)])


SELECTORS = [Selector(Random, _random)]
