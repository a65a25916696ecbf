"""Overlap with benchmarks against loops over sets of tuples of words, and every way to write a benchmark."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation_assets.quality import contamination, words
from curation_assets.quality.contamination import BenchmarkError, BenchmarkIndex, read_benchmark
from tests.quality.helpers import anything, gsm8k, nasty, texts, wordy

Match = tuple[list[str], list[float], list[int]]

benchmarks = st.dictionaries(st.sampled_from(["a", "b", "Ω"]), st.lists(nasty | anything | wordy, max_size=6))


def split(text: str) -> list[str]:
    found: list[str] = words.split_words(pl.Series([text])).to_list()[0]
    return found


def grams(found: list[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(found[start : start + n]) for start in range(len(found) - n + 1)}


def naive_match(text: str, items: dict[str, list[str]], n: int) -> Match:
    """For each benchmark the item whose n-grams stand in the text most."""
    names, shares, numbers = [], [], []
    for name in sorted(items):
        best, number = 0.0, -1
        for at, item in enumerate(items[name]):
            found = split(item)
            if len(found) < min(4, n):
                continue
            length = min(n, len(found))
            wanted = grams(found, length)
            share = len(wanted & grams(split(text), length)) / len(wanted)
            if share > best:
                best, number = share, at
        if number >= 0:
            names.append(name)
            shares.append(best)
            numbers.append(number)
    return names, shares, numbers


def check(index: BenchmarkIndex, items: dict[str, list[str]], values: list[str | None], n: int) -> None:
    found = index.matches(pl.Series(values, dtype=pl.String))
    assert found.schema == {"benchmark": pl.List(pl.String), "shared": pl.List(pl.Float64), "item": pl.List(pl.Int64)}
    expected = [(None, None, None) if value is None else naive_match(value, items, n) for value in values]
    assert found.rows() == expected


@given(benchmarks, texts, st.integers(1, 9))
def test_matches_are_those_of_loops_over_sets(items: dict[str, list[str]], values: list[str | None], n: int) -> None:
    # Texts that hold items, whole or in part.
    values = [*values, *(f"x {item[2:]} y" for of in items.values() for item in of)]
    index = BenchmarkIndex.of(items, n)
    check(index, items, values, n)
    for name, of in items.items():
        short = sum(len(split(item)) < min(4, n) for item in of)
        assert (index.items[name], index.skipped[name]) == (len(of) - short, short)


def test_parts_of_the_work_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    items = {"a": ["one two three four five", "two three four five six"], "b": ["the cat sat down here"]}
    values = ["one two three four five six", None, "", "now the cat sat down here", "two three four five six seven"]
    monkeypatch.setattr(words, "BATCH_BYTES", 30)
    monkeypatch.setattr(contamination, "_PAIRS_AT_ONCE", 1)
    check(BenchmarkIndex.of(items, 4), items, values, 4)


def test_what_is_shared_and_by_which_item() -> None:
    items = {
        "maths": [
            "Tom has ten red apples and he eats three of them",
            "How many apples does Tom have left?",
            "How many left?",
        ],
        "trivia": ["What is the capital of France, and how many people live there now?"],
    }
    index = BenchmarkIndex.of(items)
    assert (index.items, index.skipped) == ({"maths": 2, "trivia": 1}, {"maths": 1, "trivia": 0})
    values = [
        "so: tom HAS ten red apples, and he eats THREE of them!",
        "Tom has ten red apples and he eats two of them",
        "I ask: how many apples does tom have left",
        "Tom has ten red apples",
    ]
    assert index.matches(pl.Series(values)).rows() == [
        (["maths"], [1.0], [0]),
        (["maths"], [0.25], [0]),
        (["maths"], [1.0], [1]),
        ([], [], []),
    ]


def test_nothing_to_match() -> None:
    for index in (BenchmarkIndex.of({}), BenchmarkIndex.of({"a": []}), BenchmarkIndex.of({"a": ["too short"]})):
        assert index.matches(pl.Series(["too short", None])).rows() == [([], [], []), (None, None, None)]
        assert index.matches(pl.Series([], dtype=pl.String)).is_empty()
    with pytest.raises(ValueError, match="at least 1"):
        BenchmarkIndex.of({}, n=0)


@pytest.mark.data
def test_held_out_problems_are_found_in_traces(real_data: Path) -> None:
    held_out = [row["question"] for row in gsm8k(real_data, "test")]
    training = [row["question"] + "\n" + row["answer"] for row in gsm8k(real_data)[:500]]
    leaked = [f"Solve this: {question} Let us see." for question in held_out[:50]]
    index = BenchmarkIndex.of({"gsm8k": held_out})
    found = index.matches(pl.Series(leaked))
    assert found["shared"].list.max().to_list() == [1.0] * 50
    assert found["item"].to_list() == [[at] for at in range(50)]
    apart = index.matches(pl.Series(training))["shared"].list.max().fill_null(0.0)
    assert (apart > 0.5).sum() < 5
    for at in (0, 17, 499):
        assert index.matches(pl.Series([training[at]])).row(0) == naive_match(training[at], {"gsm8k": held_out}, 8)


QUESTIONS = ["What is one?", "What is two?"]


def lines(rows: list[dict[str, object]]) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def test_every_format_is_read(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"id": at, "question": text} for at, text in enumerate(QUESTIONS)]
    contents = {
        "a.jsonl": b"\xef\xbb\xbf" + lines(rows) + b"\n",
        "a.jsonl.gz": gzip.compress(lines(rows)),
        "a.JSON": json.dumps(rows, indent=1).encode(),
        "b.json": orjson.dumps({"version": 1, "data": rows}),
        "c.json": orjson.dumps(QUESTIONS),
        "a.txt": "\r\n\r\n".join(QUESTIONS).encode(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert read_benchmark(tmp_path / name) == QUESTIONS, name
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
    assert read_benchmark(tmp_path / "a.parquet") == QUESTIONS


@pytest.mark.parametrize(
    ("row", "field", "text"),
    [
        ({"Problem": "p", "text": "t"}, None, "p"),
        ({"text": "t", "prompt": "p"}, None, "p"),
        ({"question": None, "instruction": " ", "input": "i"}, None, "i"),
        ({"question": "q", "body": "b"}, "body", "b"),
        ({"question": "q", "body": ""}, "body", ""),
        ({"Question": "first", "question": "second"}, None, "first"),
    ],
)
def test_which_field_is_read(tmp_path: Path, row: dict[str, object], field: str | None, text: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines([row]))
    assert read_benchmark(tmp_path / "a.jsonl", field) == [text]


@pytest.mark.parametrize(
    ("name", "content", "field", "message"),
    [
        ("a.jsonl", b'{"question": "q"}\n\n{"title": "t", "n": 1}\n', None, r"a\.jsonl, line 3: .*row has title, n"),
        ("a.jsonl", b"{}\n", None, r"line 1: .*the row has none"),
        ("a.jsonl", b'{"question": "q"}\n', "body", r"line 1: the field body is missing; its fields are question"),
        ("a.jsonl", b'{"body": ["b"]}\n', "body", r"line 1: the field body is not text"),
        ("a.jsonl", b'{"question": "q"}\n{"question"\n', None, r"a\.jsonl, line 2: "),
        ("a.jsonl", b"", None, r"has no items"),
        ("a.txt", b" \n", None, r"has no items"),
        ("a.jsonl.gz", b"no gzip", None, r"gzip"),
        ("a.parquet", b"no parquet", None, r"a\.parquet: "),
        ("a.json", b'[{"question": "q"}, 3]', None, r"a\.json, entry 2: not an object"),
        ("a.json", b'["q"]', "body", r"entry 1: not an object"),
        ("a.json", b'{"a": [], "b": []}', None, r"must be a list of items"),
        ("a.json", b"3", None, r"must be a list of items"),
        ("a.json", b'{"question": "q"}\n{"question": "q"}\n', None, r"line 2: not JSON .* \.jsonl"),
        ("a.txt", b"\xff", None, r"byte 0 is not UTF-8"),
        ("a.csv", b"q", None, r"Rename it"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, name: str, content: bytes, field: str | None, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BenchmarkError, match=message):
        read_benchmark(tmp_path / name, field)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.parquet"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(BenchmarkError, match="No such file"):
        read_benchmark(tmp_path / name)
