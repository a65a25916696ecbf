"""Selector `band`: a third of the ranks by score."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

from curation_assets.methods.selectors.candidates import Candidates, Keys, Selector, SelectorSection

MIDDLE_BEGINS = Fraction("0.33")
"""Share of the descending order that the middle band leaves out."""


class Band(SelectorSection):
    """Select consecutive ranks of the scores, highest first: from the end, the start, or from one third on."""

    kind: Literal["band"] = "band"
    band: Literal["low", "middle", "high"] = "middle"


def _rank(selector: Band, found: Candidates) -> Keys:
    return Keys(found.by_score(selector.band != "low"))


def _begins(selector: Band, eligible: int, candidates: int) -> int:
    """Return the start of the band in the descending order.

    Fractions refer to the eligible samples, as budgets do: samples without a score do not move the band.
    """
    return min(int(MIDDLE_BEGINS * eligible), candidates) if selector.band == "middle" else 0


SELECTORS = [Selector(Band, rank=_rank, begins=_begins, reads=frozenset())]
