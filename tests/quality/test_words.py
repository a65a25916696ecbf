"""Words, their hashes, and the flat arrays that they stand in."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation_assets.quality import words as module
from curation_assets.quality.extras import MissingExtraError, filters_library
from curation_assets.quality.words import batches, combine, hash_words, ngram_hashes, ranges, slices, split_words
from tests.quality.helpers import naive_words, nasty, texts


def series(values: Sequence[str | None]) -> pl.Series:
    return pl.Series(values, dtype=pl.String)


@given(st.lists(nasty, max_size=8))
def test_words_are_those_of_a_loop_over_characters(values: list[str]) -> None:
    assert split_words(series(values)).to_list() == [naive_words(value) for value in values]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Two APPLES, and 3.5 pears!", ["two", "apples", "and", "3", "5", "pears"]),
        ("今天天气", ["今", "天", "天", "气"]),
        ("用Python写code", ["用", "python", "写", "code"]),
        ("カタカナと漢字", list("カタカナと漢字")),
        ("안녕하세요 여러분", ["안녕하세요", "여러분"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("ｆｕｌｌ ｗｉｄｔｈ ﬁne x²", ["full", "width", "fine", "x2"]),
        ("cafe\u0301 caf\u00e9", ["caf\u00e9", "caf\u00e9"]),
        ("$!? —", []),
        ("", []),
    ],
)
def test_words_of(text: str, words: list[str]) -> None:
    assert split_words(series([text])).to_list() == [words]


@given(texts)
def test_hashes_stand_where_their_words_do(values: list[str | None]) -> None:
    found = hash_words(series(values))
    expected = [split_words(series([value])).to_list()[0] or [] for value in values]
    assert found.counts.tolist() == [len(words) for words in expected]
    flat = [word for words in expected for word in words]
    assert found.lengths.tolist() == [len(word) for word in flat]
    by_word = dict(zip(flat, found.hashes.tolist(), strict=True))
    assert [by_word[word] for word in flat] == found.hashes.tolist()
    assert len(set(by_word.values())) == len(by_word)


@given(texts, st.integers(1, 5))
def test_windows_are_the_runs_of_words_within_texts(values: list[str | None], n: int) -> None:
    found = hash_words(series(values))
    starts, text = found.windows(n)
    expected = [
        (start, of)
        for of in range(len(values))
        for start in range(*found.offsets[of : of + 2])
        if start + n <= found.offsets[of + 1]
    ]
    assert list(zip(starts.tolist(), text.tolist(), strict=True)) == expected
    runs = [tuple(found.hashes[start : start + n].tolist()) for start, _ in expected]
    hashes = ngram_hashes(found, n, starts).tolist()
    assert len(set(zip(runs, hashes, strict=True))) == len(set(runs)) == len(set(hashes))


def test_hashes_are_the_same_everywhere_and_always() -> None:
    found = hash_words(series(["two apples"]))
    assert found.hashes.tolist() == WORD_HASHES
    assert ngram_hashes(found, 2, np.array([0])).tolist() == [NGRAM_HASH]


WORD_HASHES = [218224992319827701, 13583854720404059997]
NGRAM_HASH = 2246976913244500653


def test_the_order_and_number_of_words_count() -> None:
    one, two = np.array([1], dtype=np.uint64), np.array([2], dtype=np.uint64)
    hashes = [combine(parts)[0] for parts in ([one], [one, one], [one, one, one], [one, two], [two, one])]
    assert len({int(value) for value in hashes}) == len(hashes)
    with pytest.raises(ValueError, match="nothing"):
        combine([])


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 5)), max_size=10))
def test_ranges(pairs: list[tuple[int, int]]) -> None:
    firsts = np.array([first for first, _ in pairs], dtype=np.int64)
    counts = np.array([count for _, count in pairs], dtype=np.int64)
    expected = [first + step for first, count in pairs for step in range(count)]
    assert ranges(firsts, counts).tolist() == expected


@given(st.lists(st.integers(0, 9), max_size=20), st.integers(1, 20))
def test_slices_cover_all_in_order_and_keep_to_the_limit(sizes: list[int], limit: int) -> None:
    found = list(slices(np.array(sizes, dtype=np.int64), limit))
    assert [place for start, stop in found for place in range(start, stop)] == list(range(len(sizes)))
    assert all(sum(sizes[start:stop]) <= limit or stop - start == 1 for start, stop in found)


def test_batches_hold_every_text_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", 4)
    values = ["ab", None, "", "cd", "eeeeeee", "f", "字字"]
    found = list(batches(series(values)))
    assert [value for _, batch in found for value in batch] == values
    assert [values[start] for start, _ in found] == [batch[0] for _, batch in found]
    assert len(found) > 2


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'curation-assets\[filters\]'"):
        filters_library("rensa")
