"""Apply budgets and strata to an order of choice: how many samples a subset takes, and from which groups."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from curation_assets.config.settings import Budget
from curation_assets.methods.apportionment import ceil_share, largest_remainders

BINS = 10
"""Number of equal-sized groups for lengths and steps."""

STRATUM_LENGTHS = {"length": "response_tokens", "steps": "n_steps"}
"""Strata that are deciles of a column; other strata are the values of their own column."""


def samples_of(budget: Budget, eligible: int) -> int | None:
    """Return the number of samples that a budget allows; None if it counts tokens.

    Args:
        budget: a fraction of the eligible samples (rounded up, exact decimals), a number of samples, or tokens.
        eligible: N, the samples that pass filters and `min_steps`, with or without a score.
    """
    if budget.fraction is not None:
        return ceil_share(Fraction(str(budget.fraction)), eligible)
    return budget.samples


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
