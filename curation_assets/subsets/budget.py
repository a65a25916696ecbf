"""Budgets and strata: how many samples of an order of choice a subset takes, and of which groups."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curation_assets.settings import Budget, Stratum
from curation_assets.shares import ceil_share, largest_remainders

BINS = 10
"""Groups of equal size that lengths and steps are cut into."""

Positions = NDArray[np.int64]


class Taken(NamedTuple):
    """The positions taken, in their order, and whether that is all there were although the budget is larger."""

    positions: Positions
    whole: bool


def samples_of(budget: Budget, eligible: int) -> int | None:
    """Samples that a budget allows; None if it counts tokens.

    Args:
        budget: a fraction of the eligible (rounded up, exact decimals), a number of samples, or tokens.
        eligible: N: samples that pass filters and `min_steps`, before failures.
    """
    if budget.fraction is not None:
        return ceil_share(Fraction(str(budget.fraction)), eligible)
    return budget.samples


def most_samples(budget: Budget, pool: pl.DataFrame, eligible: NDArray[np.bool_]) -> int:
    """So many samples of an order are enough to fill a budget: one more than fit, if it counts tokens."""
    limit = samples_of(budget, int(eligible.sum()))
    if limit is not None:
        return limit
    assert budget.tokens is not None
    shortest = np.sort(_tokens(pool)[eligible])
    return int(np.searchsorted(np.cumsum(shortest), budget.tokens, side="right")) + 1


def _tokens(pool: pl.DataFrame) -> NDArray[np.int64]:
    tokens: NDArray[np.int64] = pool["response_tokens"].cast(pl.Int64).fill_null(0).to_numpy()
    return tokens


def take_within(
    order: Positions,
    budget: Budget,
    pool: pl.DataFrame,
    eligible: NDArray[np.bool_],
    stratify: Sequence[Stratum] = (),
) -> Taken:
    """The longest prefix of an order of choice within a budget; with strata, of each stratum its share.

    Args:
        order: positions in the pool, best first; whole, or (of each stratum) at least `most_samples` long.
        budget: see `samples_of`.
        pool: with columns `response_tokens` and those that make strata.
        eligible: rows of the pool that pass filters and `min_steps`, with a score or not [N].
        stratify: what makes the strata.
    """
    limit = samples_of(budget, int(eligible.sum()))
    if limit is not None:
        weights = np.ones(len(pool), dtype=np.int64)
    else:
        assert budget.tokens is not None
        limit, weights = budget.tokens, _tokens(pool)
    if int(weights[order].sum()) < limit:
        return Taken(order, whole=True)
    if not stratify:
        return Taken(_prefix(order, weights, limit), whole=False)
    return Taken(_stratified(order, weights, limit, strata(pool, eligible, stratify), eligible), whole=False)


def _prefix(order: Positions, weights: NDArray[np.int64], limit: int) -> Positions:
    return order[np.cumsum(weights[order]) <= limit]


def _stratified(
    order: Positions,
    weights: NDArray[np.int64],
    limit: int,
    stratum: NDArray[np.int64],
    eligible: NDArray[np.bool_],
) -> Positions:
    """Of each stratum as much of the budget as it has of the eligible pool, best first within it.

    What a stratum cannot use, because its samples have no score or do not fit, goes to the best of the others.
    """
    sizes = np.bincount(stratum[eligible], weights=weights[eligible]).astype(np.int64)
    quotas = largest_remainders(limit, sizes.tolist())
    taken = np.zeros(len(order), dtype=np.bool_)
    own = stratum[order]
    for number, quota in enumerate(quotas):
        members = np.flatnonzero(own == number)
        taken[members[np.cumsum(weights[order[members]]) <= quota]] = True
    others = np.flatnonzero(~taken)
    room = limit - int(weights[order[taken]].sum())
    taken[others[np.cumsum(weights[order[others]]) <= room]] = True
    return order[taken]


def strata(pool: pl.DataFrame, eligible: NDArray[np.bool_], stratify: Sequence[Stratum]) -> NDArray[np.int64]:
    """The number of each row's stratum [N], in the order of their names; deciles are of the eligible."""
    columns = {"length": "response_tokens", "steps": "n_steps"}
    among = pl.Series("eligible", eligible)
    parts = [
        (_decile(columns[name], among) if name in columns else pl.col(name).fill_null("(none)")).alias(f"part_{place}")
        for place, name in enumerate(stratify)
    ]
    numbers = pool.select(parts).select(pl.struct(pl.all()).rank("dense") - 1).to_series()
    return numbers.cast(pl.Int64).to_numpy()


def _decile(column: str, eligible: pl.Series) -> pl.Expr:
    """Which tenth of the eligible a number lies in; equal numbers are in one."""
    number = pl.when(eligible).then(pl.col(column))
    tenth = (number.rank("min") - 1) * BINS // pl.max_horizontal(number.count(), 1)
    return tenth.fill_null(0).cast(pl.Int64)
