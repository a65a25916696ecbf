"""Slices of rows, cut together, against the loop that cuts one row after another: the tables are the same."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from curation_assets.config.corpus_settings import Segmentation, Strategy
from curation_assets.steps import segmentation
from curation_assets.steps.segmentation import segment_frame
from curation_assets.steps.slice_segments import segment_slice
from curation_assets.steps.slice_text import ALNUM, DECIMAL, DIGIT, LOWER, SPACE, UPPER, SliceText
from tests.steps import test_answers, test_segmentation
from tests.steps.plain_loop import segment_frame_plainly
from tests.steps.texts import ANSWERS, FIELDS, MARKS, ODD, Row, frame, rows

SETTINGS = st.builds(
    Segmentation,
    strategy=st.sampled_from(get_args(Strategy)),
    min_step_words=st.integers(1, 5),
    max_steps=st.integers(2, 6),
    window_words=st.integers(1, 6),
)


def odd_rows(corpus: pl.DataFrame) -> int:
    """How many rows are left to be cut one by one."""
    found = segment_slice(corpus["response"].to_list(), corpus["answer"].to_list(), None, Segmentation())
    return int(np.count_nonzero(found.odd))


def assert_same(corpus: pl.DataFrame, values: Segmentation) -> None:
    assert segment_frame(corpus, values).equals(segment_frame_plainly(corpus, values)), values


@hypothesis_settings(max_examples=400)
@given(st.lists(rows(), max_size=8), SETTINGS)
def test_any_text_is_cut_as_row_by_row(given_rows: list[Row], values: Segmentation) -> None:
    assert_same(frame(given_rows), values)


@hypothesis_settings(max_examples=100)
@given(st.lists(rows(), min_size=2, max_size=8), SETTINGS, st.integers(1, 200), st.randoms(use_true_random=False))
def test_order_and_slices_do_not_matter(given_rows: list[Row], values: Segmentation, size: int, order: object) -> None:
    corpus = frame(given_rows)
    whole = segment_frame(corpus, values)
    assert whole.equals(segment_frame(corpus.reverse(), values))
    assert whole.equals(segment_frame(pl.concat([corpus, corpus[::2]]), values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "SLICE_BYTES", size)
        assert whole.equals(segment_frame(corpus, values))


def known_cases() -> Iterator[Row]:
    """The responses of the tests of single rows."""
    for name in ("test_markers", "test_no_answer", "test_explicit_answers"):
        for case in getattr(test_answers, name).pytestmark[0].args[1]:
            response, field, *_ = (case, None) if isinstance(case, str) else case
            yield response, None, field if name == "test_explicit_answers" else None
    for name in ("test_auto_takes_the_first_strategy_that_yields_two", "test_sentences"):
        for case in getattr(test_segmentation, name).pytestmark[0].args[1]:
            yield case[0], None, None
    yield "Add two and two.\nIt makes four, no more. Answer: 4", ["Add two and", "two.\nIt makes four,"], None
    for count in (63, 64, 65, 150, 1000):
        yield "\n".join(f"line number {i}" for i in range(count)), None, None


@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_the_cases_of_single_rows(strategy: Strategy) -> None:
    corpus = frame(list(known_cases()))
    for least, most, window in ((1, 2, 3), (3, 64, 40), (5, 7, 1)):
        assert_same(corpus, Segmentation(strategy=strategy, min_step_words=least, max_steps=most, window_words=window))


def test_only_odd_rows_are_cut_one_by_one() -> None:
    assert odd_rows(frame(list(known_cases()))) == 0
    plain = frame([(piece + other, None, field) for piece in MARKS for other in ANSWERS for field in FIELDS])
    assert odd_rows(plain) == 0
    among = frame([("Answer: 4", None, None), ("Answer:" + " " * 250 + "4", None, None), ("\n\nfour", None, None)])
    assert odd_rows(among) == 1
    assert odd_rows(frame([(f"Answer: {piece} \\boxed{{{piece}", None, None) for piece in ODD])) > 3


def test_steps_that_are_not_there_are_refused_among_others() -> None:
    good: Row = ("One two.\nThree four.", ["One two.", "Three four."], None)
    for bad in (["no such step"], ["Three four.", "One two."], ["One two.", "One two."]):
        corpus = frame([good, ("One two.\nThree four.", bad, None), good])
        for strategy in ("auto", "explicit"):
            with pytest.raises(ValueError, match="order"):
                segment_frame(corpus, Segmentation(strategy=strategy))
        assert_same(corpus, Segmentation(strategy="lines"))


def test_every_character_is_of_its_kind() -> None:
    """The twin is the character's own methods."""
    points = [*range(0x3100), *range(0xFB00, 0x10000), *range(0x10000, 0x110000, 37)]
    text = SliceText(["".join(map(chr, points))])
    codes = text.codes[text.starts[0] : text.ends[0]]
    kinds = [(SPACE, str.isspace), (ALNUM, str.isalnum), (LOWER, str.islower), (UPPER, str.isupper)]
    kinds += [(DIGIT, str.isdigit), (DECIMAL, str.isdecimal)]
    for table, method in kinds:
        assert table[codes].tolist() == [method(chr(point)) for point in points], method


@pytest.mark.parametrize(
    "piece", ["a. ", "\\boxed{", "<a>", "<think>", "Answer:", "A:\n", "####\n", "\n ", "* ", "4", "\u3002"]
)
def test_no_slice_takes_more_than_linear_time(piece: str) -> None:
    corpus = frame([(piece * 100_000, None, "4")] + [(piece, None, "4")] * 1000)
    begin = time.process_time()
    segment_frame(corpus, Segmentation())
    assert time.process_time() - begin < 20


def responses_of(folder: Path) -> Iterator[Row]:
    """Every text of the real data, with steps and answers where the data has them."""
    for path in sorted([*folder.glob("gsm8k/*.jsonl"), *folder.glob("aqua_rat/*.json")]):
        for row in map(json.loads, path.read_text().splitlines()):
            answer = row.get("correct")
            for value in row.values():
                texts = value.values() if isinstance(value, dict) else [value]
                yield from ((text, None, answer) for text in texts if isinstance(text, str))
    for path in sorted(folder.glob("prm800k_phase1/*.parquet")):
        for row in pl.read_parquet(path).iter_rows(named=True):
            steps = [*(row["responses"] or []), row["next_response"] or ""]
            yield "\n".join(steps), steps, row["answer"]


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_real_data_is_cut_as_row_by_row(strategy: Strategy, real_data: Path) -> None:
    # The slow twin takes its time: each strategy cuts a part of the rows.
    part = get_args(Strategy).index(strategy)
    corpus = frame(list(responses_of(real_data))[part :: len(get_args(Strategy))])
    assert_same(corpus, Segmentation(strategy=strategy))
    assert odd_rows(corpus) <= corpus.height // 1000
