"""Metadata that every asset shows in Dagster: column schemas, row counts, tables, owners."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import dagster as dg
import polars as pl

from curation_assets.config.running_settings import Freshness
from curation_assets.tables import Table
from curation_resources.text import escape_cell

OWNERS = ["team:curation"]


def column_schema(table: Table) -> dict[str, Any]:
    """Return definition metadata with the table's columns: types, units and meaning."""
    columns = [
        dg.TableColumn(
            name=name,
            type=str(column.dtype),
            description=f"{column.meaning} [{column.unit}]" if column.unit else column.meaning,
            constraints=dg.TableColumnConstraints(nullable=column.nullable),
        )
        for name, column in table.columns.items()
    ]
    return {"dagster/column_schema": dg.TableSchema(columns=columns)}


def freshness_policy(freshness: Freshness) -> dg.FreshnessPolicy | None:
    """Return the policy for assets that have to be updated regularly; None if the configuration sets none."""
    if freshness.fail_hours is None:
        return None
    warn = None if freshness.warn_hours is None else timedelta(hours=freshness.warn_hours)
    return dg.FreshnessPolicy.time_window(timedelta(hours=freshness.fail_hours), warn)


def row_count(rows: int, partitioned: bool) -> dict[str, int]:
    """Return materialization metadata with the row count, under the name that the UI plots."""
    return {"dagster/partition_row_count" if partitioned else "dagster/row_count": rows}


def markdown_table(headers: Iterable[str], rows: Iterable[Iterable[object]]) -> dg.MetadataValue[Any]:
    """Return a Markdown table; cells are shown as plain text."""
    lines = ["| " + " | ".join(headers) + " |"]
    lines.append("|" + " --- |" * (lines[0].count("|") - 1))
    lines += ["| " + " | ".join(escape_cell(cell) for cell in row) + " |" for row in rows]
    return dg.MetadataValue.md("\n".join(lines))


def facts_table(facts: Mapping[str, object]) -> dg.MetadataValue[Any]:
    """Return a two-column Markdown table of names and values."""
    return markdown_table(("what", "value"), [(name.replace("_", " "), value) for name, value in facts.items()])


def finite(frame: pl.DataFrame, column: str) -> list[float]:
    """Return the finite values of a column, for a plot."""
    return [float(value) for value in frame[column].drop_nulls().to_list() if abs(value) < float("inf")]
