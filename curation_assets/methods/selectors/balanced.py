"""Selector `balanced`: as many samples of each group as of any other, best score first within each."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import Field, field_validator

from curation_assets.methods.selectors.candidates import Candidates, Choice, Positions, Selector, SelectorSection

Grouping = Literal["source", "domain", "generator"]


class Balanced(SelectorSection):
    """Select equally from each group, best score first; a group that runs out is replaced by the others.

    `stratify` gives each group its share of the pool instead. The default is the source, because every sample has one;
    samples without a domain or generator are a group of their own.
    """

    kind: Literal["balanced"] = "balanced"
    by: Annotated[list[Grouping], Field(min_length=1)] = Field(
        ["source"], description="columns that define the groups: one for each combination of their values"
    )

    @field_validator("by")
    @classmethod
    def _once(cls, by: list[Grouping]) -> list[Grouping]:
        if len(set(by)) < len(by):
            raise ValueError("a column is named twice. Name each column once.")
        return by


def in_turn(groups: pl.DataFrame) -> Positions:
    """Return the order of rows [N], given best first, in which groups take turns: the first of each, then the second.

    Args:
        groups: columns that define the group of each row; nulls are a value.
    """
    turns = groups.select(pl.int_range(pl.len()).over(groups.columns)).to_series().to_numpy()
    order: Positions = np.argsort(turns, kind="stable")
    return order


def _balanced(selector: Balanced, found: Candidates) -> Choice:
    # All candidates: the best ones may be of few groups.
    best = replace(found, limit=None).ranked(found.highest_first)
    return Choice(best[in_turn(found.pool[selector.by][best])])


SELECTORS = [Selector(Balanced, _balanced)]
