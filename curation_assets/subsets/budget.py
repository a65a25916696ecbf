"""Budgets and strata: how many samples of an order of choice a subset takes, and of which groups."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curation_assets.config.settings import Budget, Stratum
from curation_assets.methods.apportionment import ceil_share, largest_remainders

BINS = 10
"""Groups of equal size that lengths and steps are cut into."""

STRATUM_LENGTHS = {"length": "response_tokens", "steps": "n_steps"}
"""Strata that are tenths of a column; the others are the values of their own."""

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
    own = weights[order]
    if not stratify:
        return Taken(order[Prefix(limit).take(own)], whole=False)
    stratum = strata(pool, eligible, stratify)
    # In floats, exact up to 2**53.
    sizes = np.bincount(stratum[eligible], weights=weights[eligible]).astype(np.int64)
    first = Shares(limit, sizes.tolist())
    taken = first.take(own, stratum[order])
    taken[~taken] = Prefix(first.room()).take(own[~taken])
    return Taken(order[taken], whole=False)


class Prefix:
    """The longest prefix within a limit, of an order that comes in pieces."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen = 0

    def take(self, weights: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the samples that come next belong to it, by their weights [n]."""
        seen = self._seen + np.cumsum(weights)
        self._seen += int(weights.sum())
        return seen <= self._limit

    @property
    def full(self) -> bool:
        """Whether nothing that comes later can belong to it, but for what weighs nothing."""
        return self._seen > self._limit


class Shares:
    """Of each stratum as much of a budget as it has of the eligible pool, best first, of an order in pieces.

    What a stratum cannot use, because its samples have no score or do not fit, is left (`room`) for the best of the
    others.

    Args:
        limit: the budget.
        sizes: of each stratum's eligible samples, by their weights.
    """

    def __init__(self, limit: int, sizes: Sequence[int]) -> None:
        self._limit = limit
        self._quotas = np.array(largest_remainders(limit, sizes), dtype=np.int64)
        self._seen = np.zeros(len(sizes), dtype=np.int64)
        self._taken = 0

    def take(self, weights: NDArray[np.int64], stratum: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the samples that come next are within their strata's shares [n]."""
        by_stratum = np.argsort(stratum, kind="stable")
        grouped, ordered = stratum[by_stratum], weights[by_stratum]
        totals = np.zeros(len(self._seen), dtype=np.int64)
        np.add.at(totals, grouped, ordered)
        # Sums within each stratum: of all so far, less those of the strata before it, and what came in former pieces.
        seen = np.cumsum(ordered) + (self._seen - np.cumsum(totals) + totals)[grouped]
        taken = np.empty(len(stratum), dtype=np.bool_)
        taken[by_stratum] = seen <= self._quotas[grouped]
        self._seen += totals
        self._taken += int(weights[taken].sum())
        return taken

    def room(self) -> int:
        """What the shares have left of the budget."""
        return self._limit - self._taken


def strata(pool: pl.DataFrame, eligible: NDArray[np.bool_], stratify: Sequence[Stratum]) -> NDArray[np.int64]:
    """The number of each row's stratum [N], in the order of their names; deciles are of the eligible."""
    among = pl.Series("eligible", eligible)
    parts = [
        (_decile(STRATUM_LENGTHS[name], among) if name in STRATUM_LENGTHS else pl.col(name).fill_null("(none)")).alias(
            f"part_{place}"
        )
        for place, name in enumerate(stratify)
    ]
    numbers = pool.select(parts).select(pl.struct(pl.all()).rank("dense") - 1).to_series()
    return numbers.cast(pl.Int64).to_numpy()


def _decile(column: str, eligible: pl.Series) -> pl.Expr:
    """Which tenth of the eligible a number lies in; equal numbers are in one."""
    number = pl.when(eligible).then(pl.col(column))
    tenth = (number.rank("min") - 1) * BINS // pl.max_horizontal(number.count(), 1)
    return tenth.fill_null(0).cast(pl.Int64)
