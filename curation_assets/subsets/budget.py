"""Budgets: how many of the ranked samples a subset takes."""

from __future__ import annotations

from fractions import Fraction

import polars as pl

from curation_assets.settings import Budget
from curation_assets.shares import ceil_share


def take_within(ranked: pl.DataFrame, budget: Budget, eligible: int) -> pl.DataFrame:
    """The first rows of a ranked frame that fit the budget.

    Args:
        ranked: best first, with a column `response_tokens`.
        budget: a fraction of `eligible` (rounded up, exact decimals), a number of samples, or tokens (the
            longest prefix whose sum stays within them).
        eligible: N: rows after filters and `min_steps`, before failures.
    """
    if budget.fraction is not None:
        return ranked.head(ceil_share(Fraction(str(budget.fraction)), eligible))
    if budget.samples is not None:
        return ranked.head(budget.samples)
    return ranked.filter(pl.col("response_tokens").cast(pl.Int64).cum_sum() <= budget.tokens)
