"""What a table's contract accepts, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from curation_assets.tables import ALL_TABLES, Column, Table, TableError

TABLE = Table(
    "trial",
    "a table for tests",
    {
        "sample_id": Column(pl.String, "id"),
        "step": Column(pl.Int32, "number"),
        "score": Column(pl.Float64, "a score", nullable=True),
        "norms": Column(pl.List(pl.Float32), "norms", nullable=True),
    },
    sort=("sample_id", "step"),
)
GOOD = {"sample_id": ["b", "a", "a"], "step": [1, 2, 1], "score": [0.5, None, 1.0], "norms": [[1.0], [], None]}


def test_columns_are_put_in_order_cast_and_sorted() -> None:
    found = TABLE.conform(pl.DataFrame(GOOD).select("norms", "score", "step", "sample_id"))
    assert found.schema == TABLE.empty().schema
    assert found.rows() == [("a", 1, 1.0, None), ("a", 2, None, []), ("b", 1, 0.5, [1.0])]


def test_rows_that_sort_alike_stay_in_order() -> None:
    frame = pl.DataFrame(
        {"sample_id": ["a"] * 50, "step": [1] * 50, "score": [float(n) for n in range(50)], "norms": None}
    )
    assert TABLE.conform(frame)["score"].to_list() == frame["score"].to_list()


def test_conforming_again_changes_nothing() -> None:
    once = TABLE.conform(pl.DataFrame(GOOD))
    assert_frame_equal(TABLE.conform(once), once)


def test_a_column_of_nulls_takes_its_type() -> None:
    found = TABLE.conform(pl.DataFrame(GOOD | {"score": [None] * 3, "norms": [[None]] * 3}))
    assert found.schema == TABLE.empty().schema


def test_no_rows() -> None:
    assert_frame_equal(TABLE.conform(TABLE.empty()), TABLE.empty())
    assert_frame_equal(TABLE.conform(pl.DataFrame({name: [] for name in GOOD})), TABLE.empty())


def test_missing_and_unknown_columns_are_both_named() -> None:
    frame = pl.DataFrame(GOOD).drop("score", "step").with_columns(extra=1)
    with pytest.raises(
        TableError, match=r"table trial: missing columns \['step', 'score'\], unknown columns \['extra'\]"
    ):
        TABLE.conform(frame)


@pytest.mark.parametrize(
    ("name", "values", "shown"),
    [
        ("step", ["1", "2", "3"], "step is String"),
        ("step", [1.0, 2.5, 3.0], "step is Float64"),
        ("step", [True, False, True], "step is Boolean"),
        ("sample_id", [1, 2, 3], "sample_id is Int64"),
        ("score", ["0.1", "x", None], "score is String"),
        ("norms", [1.0, 2.0, 3.0], "norms is Float64"),
        ("norms", [["1"], ["2"], []], r"norms is List\(String\)"),
    ],
)
def test_another_type_is_refused(name: str, values: list[object], shown: str) -> None:
    with pytest.raises(TableError, match=f"table trial: columns with the wrong type: {shown}"):
        TABLE.conform(pl.DataFrame(GOOD | {name: values}))


def test_a_number_too_large_for_its_column_is_refused() -> None:
    with pytest.raises(TableError, match=r"table trial: .*i32"):
        TABLE.conform(pl.DataFrame(GOOD | {"step": [1, 2, 2**31]}))


def test_nulls_only_where_they_may_be() -> None:
    with pytest.raises(TableError, match="table trial: column step is not nullable but contains 2 nulls"):
        TABLE.conform(pl.DataFrame(GOOD | {"step": [None, 1, None]}))


def test_further_columns_where_the_table_is_open() -> None:
    open_table = replace(TABLE, open_columns=pl.Float64)
    found = open_table.conform(pl.DataFrame(GOOD).with_columns(zeta=pl.Series([1, None, 3]), alpha=0.5))
    assert found.columns == [*GOOD, "zeta", "alpha"]
    assert found.schema["zeta"] == pl.Float64
    with pytest.raises(TableError, match="named is String"):
        open_table.conform(pl.DataFrame(GOOD).with_columns(named=pl.lit("x")))


def test_a_table_without_an_order_keeps_that_of_its_rows() -> None:
    assert replace(TABLE, sort=()).conform(pl.DataFrame(GOOD))["sample_id"].to_list() == ["b", "a", "a"]


@pytest.mark.parametrize("name", ALL_TABLES)
def test_every_table_is_described_and_conforms_when_empty(name: str) -> None:
    table = ALL_TABLES[name]
    assert table.name == name
    assert table.meaning
    assert all(column.meaning for column in table.columns.values())
    assert set(table.sort) <= set(table.columns)
    assert_frame_equal(table.conform(table.empty()), table.empty())
