"""Repetition against loops over lines, words and characters."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from curation_assets.quality import words
from curation_assets.quality.repetition import REPETITION_LIMITS, repetition, repetitive
from tests.quality.helpers import gsm8k, nasty, texts, wordy

# White space as Unicode defines it: Python alone adds four control characters.
SPACE = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace() and c not in "\x1c\x1d\x1e\x1f")


def naive_pieces(pieces: Sequence[str]) -> tuple[float | None, float | None]:
    """The shares of pieces, and of characters in pieces, that stood before."""
    pieces = [piece.strip(SPACE) for piece in pieces if piece.strip(SPACE)]
    if not pieces:
        return None, None
    again = [piece for at, piece in enumerate(pieces) if piece in pieces[:at]]
    return len(again) / len(pieces), sum(map(len, again)) / sum(map(len, pieces))


def covered(found: list[str], starts: list[int], n: int) -> int:
    """Characters of the words in runs of n from the starts on."""
    return sum(len(found[at]) for at in {at for start in starts for at in range(start, start + n)})


def naive_repetition(text: str | None) -> dict[str, float | None]:
    result: dict[str, float | None] = dict.fromkeys(REPETITION_LIMITS)
    if text is None:
        return result
    result["duplicate_line_share"], result["duplicate_line_characters"] = naive_pieces(text.split("\n"))
    paragraphs = naive_pieces(re.split(rf"\n[{SPACE}]*\n", text))
    result["duplicate_paragraph_share"], result["duplicate_paragraph_characters"] = paragraphs
    found: list[str] = words.split_words(pl.Series([text])).to_list()[0]
    if not found:
        return result
    characters = sum(map(len, found))
    for n in range(2, 11):
        runs = [tuple(found[start : start + n]) for start in range(len(found) - n + 1)]
        if n >= 5:
            again = [start for start, run in enumerate(runs) if run in runs[:start]]
            result[f"duplicate_{n}_gram_characters"] = covered(found, again, n) / characters
        elif n <= 4:
            most = max(Counter(runs).values(), default=0)
            top = [
                covered(found, [start for start, other in enumerate(runs) if other == run], n)
                for run, count in Counter(runs).items()
                if count == most > 1
            ]
            result[f"top_{n}_gram_characters"] = max(top, default=0) / characters
    return result


def check(values: list[str | None]) -> None:
    found = repetition(pl.Series(values, dtype=pl.String))
    assert dict(found.schema) == dict.fromkeys(REPETITION_LIMITS, pl.Float64)
    for value, row in zip(values, found.iter_rows(named=True), strict=True):
        assert row == pytest.approx(naive_repetition(value), nan_ok=False), value


@given(texts)
@example(["\x1f", "a\n\x1f\na\n\x85\na"])
def test_repetition_is_that_of_loops(values: list[str | None]) -> None:
    check(values)


@given(
    st.lists(st.tuples(nasty | wordy, st.integers(1, 4), st.sampled_from(["", " ", "\n", "\n\n", "\n \n"])), max_size=5)
)
def test_repeated_texts(parts: list[tuple[str, int, str]]) -> None:
    check(["".join((text + between) * times for text, times, between in parts)])


def test_batches_and_order_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    values = ["a b a b\na b", None, "", "今天今天今天", "x\n\nx\n\ny", "a b a b\na b"]
    whole = repetition(pl.Series(values))
    monkeypatch.setattr(words, "BATCH_BYTES", 10)
    assert repetition(pl.Series(values)).equals(whole)
    assert repetition(pl.Series(values[::-1])).equals(whole.reverse())


def test_shares_of_a_text_that_can_be_counted_by_hand() -> None:
    row = repetition(pl.Series(["aa bb\naa bb\ncc dd ee\n\nff\n\nff"])).row(0, named=True)
    assert row["duplicate_line_share"] == 2 / 5
    assert row["duplicate_line_characters"] == (5 + 2) / (5 + 5 + 8 + 2 + 2)
    assert row["duplicate_paragraph_share"] == 1 / 3
    assert row["duplicate_paragraph_characters"] == 2 / (20 + 2 + 2)
    assert row["top_2_gram_characters"] == 8 / 18
    assert row["duplicate_5_gram_characters"] == 0


def test_what_exceeds_the_limits() -> None:
    frame = repetition(pl.Series(["one two three", "wait\nwait\nwait\nwait", None, ""]))
    found = repetitive(frame)
    assert found.dtype == pl.List(pl.String)
    assert found.to_list() == [
        [],
        ["duplicate_line_share", "duplicate_line_characters", "top_2_gram_characters", "top_3_gram_characters"],
        [],
        [],
    ]
    assert repetitive(frame, {"duplicate_line_share": 0.75}).to_list() == [[], [], [], []]
    assert repetitive(frame, {"duplicate_line_share": 0.74}).to_list()[1] == ["duplicate_line_share"]
    assert repetitive(frame, {}).to_list() == [[], [], [], []]
    assert repetitive(frame.head(0)).to_list() == []
    assert repetitive(frame.head(0), {}).to_list() == []
    with pytest.raises(ValueError, match="unknown repetition statistic: lines"):
        repetitive(frame, {"lines": 0.3})


@pytest.mark.data
def test_repetition_of_real_traces_is_that_of_loops(real_data: Path) -> None:
    check([row["question"] + "\n" + row["answer"] for row in gsm8k(real_data)[:150]])
