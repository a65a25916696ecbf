"""Budgets and statistics: exact shares, stable prefixes, AUROC."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation_assets.config.settings import Budget, Stratum
from curation_assets.demo.tour import auroc
from curation_assets.methods.apportionment import ceil_share, largest_remainders
from tests.subsets.in_memory import strata, take_within

STRATA: list[Stratum] = ["source", "domain", "generator", "length", "steps"]


def ranked(tokens: list[int]) -> pl.DataFrame:
    return pl.DataFrame({"sample_id": [f"{n:05d}" for n in range(len(tokens))], "response_tokens": tokens})


def take(
    frame: pl.DataFrame,
    order: list[int],
    budget: Budget,
    by: Sequence[Stratum] = (),
    eligible: list[bool] | None = None,
) -> tuple[list[int], bool]:
    may = np.array([True] * len(frame) if eligible is None else eligible, dtype=np.bool_)
    found = take_within(np.array(order, dtype=np.int64), budget, frame, may, by)
    return found.positions.tolist(), found.whole


def taken(tokens: list[int], budget: Budget, eligible: int) -> int:
    """How many are taken of samples with these tokens, when others without a score are eligible too."""
    frame = ranked(tokens + [1] * (eligible - len(tokens)))
    return len(take(frame, list(range(len(tokens))), budget)[0])


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
        assert take(ranked([3] * 4), [0, 1, 2], budget) == ([0, 1, 2], True)
    assert take(ranked([3, 3, 3]), [2, 1, 0], Budget(samples=3)) == ([2, 1, 0], False)


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
    order = np.argsort(-frame["score"].to_numpy()).tolist()
    limit = draw.randint(1, size)
    chosen, _ = take(frame, order, Budget(samples=limit), by)
    assert len(chosen) == limit
    assert chosen == [place for place in order if place in set(chosen)]
    label = strata(frame, np.ones(size, dtype=np.bool_), by)
    for stratum in set(label.tolist()):
        members = [place for place in order if label[place] == stratum]
        mine = [place for place in chosen if label[place] == stratum]
        assert abs(len(mine) - limit * len(members) / size) < 1
        assert mine == members[: len(mine)]
    turned = frame.reverse()
    again, _ = take(turned, [size - 1 - place for place in order], Budget(samples=limit), by)
    assert [size - 1 - place for place in again] == chosen


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(2, 60))
def test_strata_share_tokens_and_stay_within_them(draw: random.Random, size: int) -> None:
    frame = pool(draw, size)
    limit = draw.randint(1, int(frame["response_tokens"].sum()))
    chosen, _ = take(frame, list(range(size)), Budget(tokens=limit), ["source"])
    assert sum(frame["response_tokens"][place] for place in chosen) <= limit


def test_what_a_stratum_without_scores_cannot_use_goes_to_the_others() -> None:
    frame = pool(random.Random(0), 30).with_columns(source=pl.Series(["a"] * 10 + ["b"] * 20))
    assert len(take(frame, list(range(10, 30)), Budget(samples=12), ["source"])[0]) == 12


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_auroc_equals_counting_pairs(positive: list[int], negative: list[int]) -> None:
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    found = auroc(pl.Series(positive), pl.Series(negative))
    assert found == pytest.approx(wins / len(positive) / len(negative))


def test_auroc_of_nothing_is_none() -> None:
    assert auroc(pl.Series([], dtype=pl.Float64), pl.Series([1.0])) is None
