"""Shares of what is due: every row in one of them, whatever their number, and about as much in each."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation_assets.operations.share import Share, cut, rows_between
from curation_assets.signals.engine import work_of_rows
from curation_resources.errors import UserError


def shard_of(lengths: list[int]) -> pl.DataFrame:
    names = [f"s{number}" for number in range(len(lengths))]
    return pl.DataFrame(
        {
            "sample_id": names,
            "messages": "",
            "response": ["x" * length for length in lengths],
            "images": [[]] * len(names),
        },
        schema={"sample_id": pl.String, "messages": pl.String, "response": pl.String, "images": pl.List(pl.String)},
    )


SHARDS = st.lists(st.tuples(st.integers(1, 5_000), st.lists(st.integers(0, 50), max_size=8)), max_size=6)


@given(SHARDS, st.integers(1, 9))
def test_every_row_is_in_one_share(shards: list[tuple[int, list[int]]], of: int) -> None:
    sizes = {str(number): size for number, (size, _) in enumerate(shards)}
    tables = {str(number): shard_of(lengths) for number, (_, lengths) in enumerate(shards)}
    found = [
        (shard, name)
        for number in range(1, of + 1)
        for shard, begin, end in cut(sizes, Share(number, of))
        for name in rows_between(tables[shard], begin, end)["sample_id"]
    ]
    assert len(found) == len(set(found))
    assert sorted(found) == sorted((shard, name) for shard, table in tables.items() for name in table["sample_id"])


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 6))
def test_shares_of_a_shard_differ_by_a_row_and_no_more(lengths: list[int], of: int) -> None:
    table = shard_of(lengths)
    sizes = {"a": 10_000}
    work = [
        sum(work_of_rows(rows_between(table, begin, end)))
        for number in range(1, of + 1)
        for _, begin, end in cut(sizes, Share(number, of))
    ]
    assert all(abs(own - sum(lengths) / of) <= max(lengths) + 1 for own in work)


def test_a_share_reads_its_own_shards_alone() -> None:
    sizes = dict.fromkeys("abcdefgh", 10)
    assert [[shard for shard, *_ in cut(sizes, Share(number, 4))] for number in (1, 2, 3, 4)] == [
        ["a", "b"],
        ["c", "d"],
        ["e", "f"],
        ["g", "h"],
    ]


@pytest.mark.parametrize("text", ["", "3", "0/4", "5/4", "a/b", "1/4/2", "-1/4", "1/0", "٣/٤x"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"is not a share\. Write its number and the number of shares: 1/16"):
        Share.parse(text)


def test_a_share_is_read() -> None:
    assert Share.parse("3/16") == Share(3, 16)
