"""Apply budgets and strata to an order of choice: how many samples a subset takes, and from which groups."""

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
"""Number of equal-sized groups for lengths and steps."""

STRATUM_LENGTHS = {"length": "response_tokens", "steps": "n_steps"}
"""Strata that are deciles of a column; other strata are the values of their own column."""

Positions = NDArray[np.int64]


class Taken(NamedTuple):
    """The positions taken, in order; `whole` means that there were no more although the budget is larger."""

    positions: Positions
    whole: bool


def samples_of(budget: Budget, eligible: int) -> int | None:
    """Return the number of samples that a budget allows; None if it counts tokens.

    Args:
        budget: a fraction of the eligible samples (rounded up, exact decimals), a number of samples, or tokens.
        eligible: N, the samples that pass filters and `min_steps`, with or without a score.
    """
    if budget.fraction is not None:
        return ceil_share(Fraction(str(budget.fraction)), eligible)
    return budget.samples


def most_samples(budget: Budget, pool: pl.DataFrame, eligible: NDArray[np.bool_]) -> int:
    """Return how much of an order suffices to fill a budget: one sample more than fits, if it counts tokens."""
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
    """Take the longest prefix of an order of choice within a budget; with strata, take each stratum's share.

    Args:
        order: positions in the pool, best first; complete, or (per stratum) at least `most_samples` long.
        budget: see `samples_of`.
        pool: rows with `response_tokens` and the columns of the strata.
        eligible: rows of the pool that pass filters and `min_steps`, with or without a score [N].
        stratify: the columns that define the strata.
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
    # Floating-point sums are exact up to 2**53.
    sizes = np.bincount(stratum[eligible], weights=weights[eligible]).astype(np.int64)
    first = Shares(limit, sizes.tolist())
    taken = first.take(own, stratum[order])
    taken[~taken] = Prefix(first.room()).take(own[~taken])
    return Taken(order[taken], whole=False)


class Prefix:
    """Takes the longest prefix within a limit from an order that arrives in pieces."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen = 0

    def take(self, weights: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of the next samples belong to the prefix, given their weights [n]."""
        seen = self._seen + np.cumsum(weights)
        self._seen += int(weights.sum())
        return seen <= self._limit

    @property
    def full(self) -> bool:
        """True if later samples cannot belong to the prefix, unless their weight is zero."""
        return self._seen > self._limit


class Shares:
    """Take from each stratum its share of the budget, best first, from an order that arrives in pieces.

    A stratum's share is proportional to its part of the eligible pool. The part of a share that its stratum cannot use,
    because samples have no score or do not fit, is left (`room`) for the best of the others.

    Args:
        limit: the budget.
        sizes: total weight of each stratum's eligible samples.
    """

    def __init__(self, limit: int, sizes: Sequence[int]) -> None:
        self._limit = limit
        self._quotas = np.array(largest_remainders(limit, sizes), dtype=np.int64)
        self._seen = np.zeros(len(sizes), dtype=np.int64)
        self._taken = 0

    def take(self, weights: NDArray[np.int64], stratum: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of the next samples are within their strata's shares [n]."""
        by_stratum = np.argsort(stratum, kind="stable")
        grouped, ordered = stratum[by_stratum], weights[by_stratum]
        totals = np.zeros(len(self._seen), dtype=np.int64)
        np.add.at(totals, grouped, ordered)
        # Sums within each stratum: the running total minus earlier strata, plus what arrived in earlier pieces.
        seen = np.cumsum(ordered) + (self._seen - np.cumsum(totals) + totals)[grouped]
        taken = np.empty(len(stratum), dtype=np.bool_)
        taken[by_stratum] = seen <= self._quotas[grouped]
        self._seen += totals
        self._taken += int(weights[taken].sum())
        return taken

    def room(self) -> int:
        """Return the part of the budget that the shares have not used."""
        return self._limit - self._taken


def strata(pool: pl.DataFrame, eligible: NDArray[np.bool_], stratify: Sequence[Stratum]) -> NDArray[np.int64]:
    """Return the number of each row's stratum [N], in the order of their names; deciles are of eligible rows."""
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
    """Return the decile of a column among eligible rows; equal values share a decile."""
    number = pl.when(eligible).then(pl.col(column))
    tenth = (number.rank("min") - 1) * BINS // pl.max_horizontal(number.count(), 1)
    return tenth.fill_null(0).cast(pl.Int64)
