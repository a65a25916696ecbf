"""Exact sums against fractions: whatever the order, and however numbers come in pieces."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from curation_assets.methods import exact_sums
from curation_assets.methods.exact_sums import ExactSum

FINITE = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=True)


@given(st.lists(st.lists(FINITE, max_size=6), max_size=4))
def test_a_sum_is_rounded_once(pieces: list[list[float]]) -> None:
    found = ExactSum()
    for piece in pieces:
        found.add(np.array(piece, dtype=np.float64))
    numbers = [number for piece in pieces for number in piece]
    assert found.count == len(numbers)
    exact = sum(map(Fraction, numbers), Fraction(0))
    try:
        expected = float(exact)
    except OverflowError:
        assert math.isnan(found.value())
    else:
        assert found.value() == expected
        assert found.mean() == (float(exact / len(numbers)) if numbers else None)


def test_long_pieces_are_taken_apart() -> None:
    draw = np.random.default_rng(0)
    numbers = draw.normal(size=3 * exact_sums.PIECE // 2) * 10.0 ** draw.integers(-200, 200, 3 * exact_sums.PIECE // 2)
    found = ExactSum()
    found.add(numbers)
    assert found.value() == math.fsum(numbers)


def test_what_is_not_finite_is_told() -> None:
    for odd in (math.nan, math.inf):
        found = ExactSum()
        found.add(np.array([1.0, odd]))
        assert math.isnan(found.value())
