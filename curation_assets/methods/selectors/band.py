"""Selector `band`: a third of the ranks by score."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import numpy as np

from curation_assets.methods.selectors.candidates import Candidates, Choice, Selector, SelectorSection, ascending

MIDDLE_BEGINS = Fraction("0.33")
"""Share of the descending order that the middle band leaves out."""


class Band(SelectorSection):
    """Select consecutive ranks of the scores, highest first: from the end, the start, or from one third on."""

    kind: Literal["band"] = "band"
    band: Literal["low", "middle", "high"] = "middle"


def _band(selector: Band, found: Candidates) -> Choice:
    if selector.band != "middle":
        return Choice(found.ranked(selector.band == "high"))
    places = np.flatnonzero(found.may)
    descending = places[ascending(-found.score[places], found.pool["sample_id"], places)]
    begin = middle_begins(len(descending) if found.eligible is None else found.eligible, len(descending))
    # A budget that reaches beyond the end goes on where the band began, upwards.
    return Choice(np.concatenate([descending[begin:], descending[:begin][::-1]]))


def middle_begins(eligible: int, ranked: int) -> int:
    """Return the start of the middle band in the descending order.

    Fractions refer to the eligible samples, as budgets do: samples without a score do not move the band.
    """
    return min(int(MIDDLE_BEGINS * eligible), ranked)


SELECTORS = [Selector(Band, _band)]
