"""Selector `top`: the best samples by score."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from curation_assets.methods.selectors.candidates import Candidates, Keys, Order, Selector, SelectorSection


class Top(SelectorSection):
    """Select the best samples by score."""

    kind: Literal["top"] = "top"
    order: Order | None = Field(None, description="order of the scores; default: the method's")


def _rank(selector: Top, found: Candidates) -> Keys:
    return Keys(found.by_score(found.highest_first if selector.order is None else selector.order == "highest"))


SELECTORS = [Selector(Top, rank=_rank, reads=frozenset())]
