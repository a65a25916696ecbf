"""Pieces cover everything once, begin small, and grow only where they take little time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation_resources import chunking as module
from curation_resources.chunking import GROWTH, pieces


@given(st.integers(0, 5000), st.integers(1, 700), st.integers(1, 300))
def test_every_item_is_in_one_piece(count: int, largest: int, first: int) -> None:
    made = list(pieces(count, largest, first))
    assert [item for begin, end in made for item in range(begin, end)] == list(range(count))
    assert all(0 < end - begin <= largest for begin, end in made)


def test_short_pieces_are_followed_by_larger_ones_and_long_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [end - begin for begin, end in pieces(10_000, 4096, 64)][:4] == [64, 64 * GROWTH, 64 * GROWTH**2, 4096]
    monkeypatch.setattr(module, "SHORT_SECONDS", -1.0)
    assert {end - begin for begin, end in pieces(640, 4096, 64)} == {64}
