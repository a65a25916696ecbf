"""Budgets and statistics: exact shares, stable prefixes, AUROC."""

from __future__ import annotations

import math
import random
from decimal import Decimal
from fractions import Fraction

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation_assets.reports.statistics import auroc
from curation_assets.settings import Budget
from curation_assets.shares import ceil_share
from curation_assets.subsets.budget import take_within
from curation_assets.subsets.select import rank


def ranked(tokens: list[int]) -> pl.DataFrame:
    return pl.DataFrame({"response_tokens": tokens})


@given(st.integers(1, 100), st.integers(0, 5000))
def test_shares_are_exact_decimals_rounded_up(percent: int, count: int) -> None:
    fraction = percent / 100
    expected = math.ceil(Decimal(str(fraction)) * count)
    assert ceil_share(Fraction(str(fraction)), count) == expected
    assert len(take_within(ranked([1] * count), Budget(fraction=fraction), count)) == expected


def test_seven_percent_of_a_hundred_is_seven() -> None:
    assert ceil_share(Fraction("0.07"), 100) == 7  # 0.07 * 100 is 7.000000000000001 in floats


def test_a_fraction_is_of_the_eligible_and_not_of_the_ranked() -> None:
    assert len(take_within(ranked([1] * 50), Budget(fraction=0.2), 100)) == 20
    assert len(take_within(ranked([1] * 5), Budget(fraction=0.2), 100)) == 5


def test_samples_and_tokens() -> None:
    assert len(take_within(ranked([3, 3, 3]), Budget(samples=2), 3)) == 2
    assert len(take_within(ranked([3, 3, 3]), Budget(tokens=8), 3)) == 2
    assert len(take_within(ranked([3, 3, 3]), Budget(tokens=9), 3)) == 3
    assert len(take_within(ranked([3]), Budget(tokens=2), 1)) == 0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_auroc_equals_counting_pairs(positive: list[int], negative: list[int]) -> None:
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    found = auroc(pl.Series(positive), pl.Series(negative))
    assert found == pytest.approx(wins / len(positive) / len(negative))


def test_auroc_of_nothing_is_none() -> None:
    assert auroc(pl.Series([], dtype=pl.Float64), pl.Series([1.0])) is None


@given(st.lists(st.sampled_from([0.1, 0.2, 0.2, None, math.nan, math.inf]), max_size=30), st.randoms())
def test_ranking_is_stable_and_never_ranks_a_failure(scores: list[float | None], shuffle: random.Random) -> None:
    rows = [(f"{n:03d}", score, n % 5 > 0) for n, score in enumerate(scores)]
    expected = sorted(
        (row for row in rows if row[2] and row[1] is not None and math.isfinite(row[1])),
        key=lambda row: (-(row[1] or 0.0), row[0]),
    )
    shuffle.shuffle(rows)
    schema = {"sample_id": pl.String, "score": pl.Float64, "eligible": pl.Boolean}
    assert rank(pl.DataFrame(rows, schema=schema, orient="row")).rows() == expected
