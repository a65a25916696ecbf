"""s1K's draw against a loop over its definition, and the shares that it draws."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation_assets.methods.random_draws import sequence, uniform
from curation_assets.methods.selectors.candidates import Candidates
from curation_assets.methods.selectors.weighted_draw import WeightedDraw, draw, rank_of
from tests.subsets.orders import check_order, chosen, pool_of


def plain_draw(found: Candidates, seed: int) -> list[str]:
    """Pick by pick, with the probabilities of all remaining samples of the domain."""
    left = [row for row, may in zip(found.pool.iter_rows(named=True), found.may, strict=True) if may]
    drawn = iter(sequence(2 * len(left), seed).tolist())
    order: list[str] = []
    while left:
        domains = sorted({row["domain"] for row in left}, key=lambda name: (name is not None, name))
        domain = domains[int(next(drawn) * len(domains))]
        own = [row for row in left if row["domain"] == domain]
        own.sort(key=lambda row: (-row["response_tokens"], row["sample_id"]))
        weights = [Fraction(1, 2**rank) for rank in range(len(own))]
        number, rank = Fraction(next(drawn)) * sum(weights), 0
        while number >= weights[rank]:
            number -= weights[rank]
            rank += 1
        order.append(own[rank]["sample_id"])
        left.remove(own[rank])
    return order


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 30), st.integers(0, 10_000), st.integers(0, 2**63 - 1))
def test_the_draw_is_the_loop(count: int, pool_seed: int, seed: int) -> None:
    found = pool_of(count, pool_seed)
    assert check_order(WeightedDraw(seed=seed), found) == plain_draw(found, seed)


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 2000))
def test_a_rank_is_where_the_sum_of_shares_passes_the_number(drawn: float, count: int) -> None:
    # As in the code, the rounding of fp64 decides at the boundaries.
    above = Fraction(1.0 - drawn * (1.0 - 2.0**-count))
    expected = next(rank for rank in range(2000) if above > Fraction(1, 2 ** (rank + 1)))
    assert rank_of(drawn, count) == min(expected, count - 1)
    assert rank_of(0.0, count) == 0
    assert rank_of(1.0 - 2.0**-53, count) == min(count - 1, 53)


def test_the_longest_are_drawn_first_with_the_shares_of_the_definition() -> None:
    firsts = Counter(int(draw([[0, 1, 2], [3]], 1, seed)[0]) for seed in range(14_000))
    shares = {0: 4 / 14, 1: 2 / 14, 2: 1 / 14, 3: 1 / 2}
    for sample, share in shares.items():
        assert abs(firsts[sample] / 14_000 - share) < 0.015
    # Ranks are those among the remaining samples: after the longest, the second is the longest.
    seconds = Counter(order[1] for seed in range(14_000) if (order := draw([[0, 1, 2]], 2, seed).tolist())[0] == 0)
    assert abs(seconds[1] / seconds.total() - 2 / 3) < 0.02


def test_a_large_domain_is_drawn_completely() -> None:
    order = draw([range(20_000), range(20_000, 20_010)], 30_000, 1)
    assert sorted(order.tolist()) == list(range(20_010))
    # The longest come first, up to a few ranks.
    own = order[order < 20_000]
    assert np.abs(own - np.arange(20_000)).max() < 60


def test_the_seed_decides_and_the_score_does_not() -> None:
    found = pool_of(50)
    again = pool_of(50, score=[1.0] * 50)
    assert chosen(WeightedDraw(), found) == chosen(WeightedDraw(), again) != chosen(WeightedDraw(seed=1), found)


def test_samples_without_a_length_are_the_shortest() -> None:
    found = pool_of(3, sample_id=list("abc"), domain=["x"] * 3, response_tokens=[None, 3, 0])
    expected = pool_of(3, sample_id=list("abc"), domain=["x"] * 3, response_tokens=[0, 3, 0])
    for seed in range(20):
        assert chosen(WeightedDraw(seed=seed), found) == chosen(WeightedDraw(seed=seed), expected)


def test_numbered_draws_are_uniform_and_unrelated_to_those_by_id() -> None:
    for seed in (0, 1, 2**63 - 1):
        drawn = sequence(20_000, seed)
        assert 0.0 <= drawn.min() <= drawn.max() < 1.0
        assert abs(drawn.mean() - 0.5) < 0.01
        assert (sequence(100, seed) == drawn[:100]).all()
        by_id = uniform(pl.Series([f"{number:013x}" for number in range(20_000)]), seed).to_numpy()
        for other in (np.arange(20_000), by_id):
            assert abs(np.corrcoef(drawn, other)[0, 1]) < 0.03
    assert abs(np.corrcoef(sequence(20_000, 0), sequence(20_000, 1))[0, 1]) < 0.03


@pytest.mark.parametrize("fields", [{"seed": -1}, {"seed": 2**63}, {"unknown": 1}])
def test_parameters_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        WeightedDraw(**fields)
