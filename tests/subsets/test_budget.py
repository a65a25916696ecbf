"""Budgets and statistics: exact shares, stable prefixes, AUROC."""

from __future__ import annotations

import math
import random
from decimal import Decimal
from fractions import Fraction

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation_assets.reports.statistics import auroc
from curation_assets.settings import Budget, Stratum
from curation_assets.shares import ceil_share, largest_remainders
from curation_assets.subsets.budget import strata, take_within

STRATA: list[Stratum] = ["source", "domain", "generator", "length", "steps"]


def ranked(tokens: list[int]) -> pl.DataFrame:
    return pl.DataFrame({"sample_id": [f"{n:05d}" for n in range(len(tokens))], "response_tokens": tokens})


def taken(tokens: list[int], budget: Budget, eligible: int) -> int:
    return len(take_within(ranked(tokens), budget, ranked([1] * eligible)).rows)


@given(st.integers(1, 100), st.integers(0, 2000))
def test_shares_are_exact_decimals_rounded_up(percent: int, count: int) -> None:
    fraction = percent / 100
    expected = math.ceil(Decimal(str(fraction)) * count)
    assert ceil_share(Fraction(str(fraction)), count) == expected
    assert taken([1] * count, Budget(fraction=fraction), count) == expected


def test_seven_percent_of_a_hundred_is_seven() -> None:
    assert ceil_share(Fraction("0.07"), 100) == 7  # 0.07 * 100 is 7.000000000000001 in floats


def test_a_fraction_is_of_the_eligible_and_not_of_the_ranked() -> None:
    assert taken([1] * 50, Budget(fraction=0.2), 100) == 20
    assert taken([1] * 5, Budget(fraction=0.2), 100) == 5


def test_samples_and_tokens() -> None:
    assert taken([3, 3, 3], Budget(samples=2), 3) == 2
    assert taken([3, 3, 3], Budget(tokens=8), 3) == 2
    assert taken([3, 3, 3], Budget(tokens=9), 3) == 3
    assert taken([3], Budget(tokens=2), 1) == 0


def test_a_budget_larger_than_what_there_is_takes_all_and_says_so() -> None:
    for budget in (Budget(samples=4), Budget(tokens=10), Budget(fraction=1.0)):
        found = take_within(ranked([3, 3, 3]), budget, ranked([3] * 4))
        assert (len(found.rows), found.whole) == (3, True)
    assert not take_within(ranked([3, 3, 3]), Budget(samples=3), ranked([3] * 3)).whole


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(0, 500))
def test_largest_remainders_sum_to_the_total_and_are_near_their_share(weights: list[int], total: int) -> None:
    shares = largest_remainders(total, weights)
    assert sum(shares) == (total if sum(weights) else 0)
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share * sum(weights) - total * weight) <= sum(weights)


def pool(draw: random.Random, size: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "sample_id": [f"{n:04x}" for n in range(size)],
            "source": [draw.choice("abc") for _ in range(size)],
            "domain": [draw.choice(["x", "y", None]) for _ in range(size)],
            "generator": [draw.choice(["g", None]) for _ in range(size)],
            "n_steps": [draw.randint(1, 9) for _ in range(size)],
            "response_tokens": [draw.randint(1, 30) for _ in range(size)],
            "score": [draw.random() for _ in range(size)],
        }
    )


@settings(max_examples=60, deadline=None)
@given(
    st.randoms(use_true_random=False),
    st.integers(2, 60),
    st.lists(
        st.sampled_from(["source", "domain", "generator", "length", "steps"]), min_size=1, max_size=2, unique=True
    ),
)
def test_each_stratum_gets_its_share_of_the_budget(draw: random.Random, size: int, by: list[Stratum]) -> None:
    frame = pool(draw, size)
    order = frame.sort("score", descending=True)
    limit = draw.randint(1, size)
    chosen = take_within(order, Budget(samples=limit), frame, by).rows
    assert len(chosen) == limit
    assert chosen["score"].is_sorted(descending=True)
    label = dict(strata(frame, by).iter_rows())
    for stratum in set(label.values()):
        members = [sample for sample in order["sample_id"] if label[sample] == stratum]
        mine = [sample for sample in chosen["sample_id"] if label[sample] == stratum]
        assert abs(len(mine) - limit * len(members) / size) < 1
        assert mine == members[: len(mine)]
    shuffled = take_within(order, Budget(samples=limit), frame.sample(fraction=1, shuffle=True, seed=1), by).rows
    assert shuffled["sample_id"].to_list() == chosen["sample_id"].to_list()


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(2, 60))
def test_strata_share_tokens_and_stay_within_them(draw: random.Random, size: int) -> None:
    frame = pool(draw, size)
    limit = draw.randint(1, int(frame["response_tokens"].sum()))
    chosen = take_within(frame.sort("score"), Budget(tokens=limit), frame, ["source"]).rows
    assert chosen["response_tokens"].sum() <= limit


def test_what_a_stratum_without_scores_cannot_use_goes_to_the_others() -> None:
    frame = pool(random.Random(0), 30).with_columns(source=pl.Series(["a"] * 10 + ["b"] * 20))
    order = frame.filter(pl.col("source") == "b").sort("score", descending=True)
    assert len(take_within(order, Budget(samples=12), frame, ["source"]).rows) == 12


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_auroc_equals_counting_pairs(positive: list[int], negative: list[int]) -> None:
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    found = auroc(pl.Series(positive), pl.Series(negative))
    assert found == pytest.approx(wins / len(positive) / len(negative))


def test_auroc_of_nothing_is_none() -> None:
    assert auroc(pl.Series([], dtype=pl.Float64), pl.Series([1.0])) is None
