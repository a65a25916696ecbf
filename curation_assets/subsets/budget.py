"""Budgets and strata: how many samples of an order of choice a subset takes, and of which groups."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import polars as pl

from curation_assets.settings import Budget, Stratum
from curation_assets.shares import ceil_share, largest_remainders

BINS = 10
"""Groups of equal size that lengths and steps are cut into."""


class Taken(NamedTuple):
    """The rows taken, in their order, and whether that is all there were although the budget is larger."""

    rows: pl.DataFrame
    whole: bool


def take_within(order: pl.DataFrame, budget: Budget, eligible: pl.DataFrame, stratify: Sequence[Stratum] = ()) -> Taken:
    """The first rows of an order of choice that fit the budget, of each stratum its share if there are strata.

    Args:
        order: best first, with a column `response_tokens`.
        budget: a fraction of the eligible (rounded up, exact decimals), a number of samples, or tokens (the
            longest prefix whose sum stays within them).
        eligible: the N samples that pass filters and `min_steps`, with a score or not.
        stratify: what makes the strata.
    """
    if budget.tokens is not None:
        limit, weight = budget.tokens, pl.col("response_tokens").cast(pl.Int64)
    else:
        limit, weight = len_of(budget, len(eligible)), pl.repeat(1, pl.len(), dtype=pl.Int64)
    weighted = order.with_columns(_weight=weight)
    whole = int(weighted["_weight"].sum()) < limit
    if stratify and not whole:
        shares = strata(eligible, stratify).with_columns(eligible.select(_weight=weight))
        weighted = _stratified(weighted, limit, shares)
    else:
        weighted = _prefix(weighted, limit)
    return Taken(weighted.select(order.columns), whole)


def len_of(budget: Budget, eligible: int) -> int:
    """Samples of a budget that counts samples."""
    if budget.fraction is not None:
        return ceil_share(Fraction(str(budget.fraction)), eligible)
    assert budget.samples is not None
    return budget.samples


def _prefix(order: pl.DataFrame, limit: int) -> pl.DataFrame:
    """The longest prefix whose weights sum to no more than the limit."""
    return order.filter(pl.col("_weight").cum_sum() <= limit)


def _stratified(order: pl.DataFrame, limit: int, shares: pl.DataFrame) -> pl.DataFrame:
    """Of each stratum as much of the budget as it has of the eligible pool, best first within it.

    What a stratum cannot use, because its samples have no score or do not fit, goes to the best of the others.

    Args:
        order: best first, with a column `_weight`.
        limit: of the sum of weights.
        shares: sample_id, stratum and _weight of every eligible sample.
    """
    sizes = dict(shares.group_by("stratum").agg(pl.col("_weight").sum()).sort("stratum").iter_rows())
    quotas = dict(zip(sizes, largest_remainders(limit, list(sizes.values())), strict=True))
    numbered = order.with_row_index("_place").join(
        shares.select("sample_id", "stratum"), on="sample_id", how="left", maintain_order="left"
    )
    quota = pl.col("stratum").replace_strict(quotas, return_dtype=pl.Int64)
    first = numbered.filter(pl.col("_weight").cum_sum().over("stratum") <= quota)
    others = numbered.join(first, on="sample_id", how="anti", maintain_order="left")
    return pl.concat([first, _prefix(others, limit - int(first["_weight"].sum()))]).sort("_place")


def strata(eligible: pl.DataFrame, stratify: Sequence[Stratum]) -> pl.DataFrame:
    """The stratum of each eligible sample, as text: sample_id and stratum."""
    columns = {"length": "response_tokens", "steps": "n_steps"}
    parts = [
        _bin(eligible, columns[name]) if name in columns else eligible[name].fill_null("(none)") for name in stratify
    ]
    labels = [part.rename(f"part_{place}") for place, part in enumerate(parts)]
    joined = pl.concat_str([label.name for label in labels], separator="\t")
    return eligible.select("sample_id", *labels).select("sample_id", stratum=joined)


def _bin(eligible: pl.DataFrame, column: str) -> pl.Series:
    """Decile of a number within the pool; equal numbers are in one bin."""
    rank = (pl.col(column).rank("min") - 1) * BINS // pl.max_horizontal(pl.len(), 1)
    return eligible.select(rank.cast(pl.String)).to_series()
