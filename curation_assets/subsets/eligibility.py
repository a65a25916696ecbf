"""Which rows of the pool are eligible for a subset."""

from __future__ import annotations

import polars as pl

from curation_assets.config.settings import Filters
from curation_assets.methods.method import ScoreSection

LOW_SIGNAL_PERCENT = 1
"""Percent of gradient norms of answers that count as low."""


def marked_right() -> pl.Expr:
    """Return whether a row is marked right, by its own mark, else by comparing answers; null if neither is known."""
    return pl.coalesce("correct", "verified")


def eligible(score: ScoreSection, filters: Filters) -> pl.Expr:
    """Return whether a row has the number of steps that the score requires and passes a subset's filters."""
    return ((pl.col("n_steps") >= score.min_steps) & passes(filters)).fill_null(value=False)


def passes(filters: Filters) -> pl.Expr:
    """Return whether a row of the pool passes a subset's filters."""
    conditions: list[pl.Expr] = [pl.lit(value=True)]
    for column, wanted in (("source", filters.sources), ("generator", filters.generators)):
        if wanted is not None:
            conditions.append(pl.col(column).is_in(wanted).fill_null(value=False))
    if filters.exclude_generators is not None:
        conditions.append(~pl.col("generator").is_in(filters.exclude_generators).fill_null(value=False))
    if filters.correct is not None:
        conditions.append((marked_right() == filters.correct).fill_null(value=False))
    for column, least, most in (
        ("response_tokens", filters.min_tokens, filters.max_tokens),
        ("n_steps", filters.min_steps, filters.max_steps),
    ):
        if least is not None:
            conditions.append(pl.col(column) >= least)
        if most is not None:
            conditions.append(pl.col(column) <= most)
    return pl.all_horizontal(conditions)
