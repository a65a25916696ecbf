"""Metadata that every asset shows in Dagster: column schemas, row counts, tables, owners."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import dagster as dg
import polars as pl

# Dagster's own API handles one partition at a time, and each call queries the event log for all of them.
from dagster._core.execution.context.metadata_logging import AssetMetadataHandle, OutputMetadataAccumulator

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


def tell_partitions(
    context: dg.AssetExecutionContext, asset_key: dg.AssetKey, metadata: Mapping[str, Mapping[str, Any]]
) -> None:
    """Attach materialization metadata to every partition of a run: `add_asset_metadata` for all of them at once.

    Calling it once per partition queries the event log for all partitions at each call;
    tests/pipeline/test_partition_metadata.py verifies that both give the same result.

    Args:
        context: the context of the running asset.
        asset_key: the key of the asset, or of one of several.
        metadata: metadata by partition; the run materializes all of them.
    """
    step = context.get_step_execution_context()
    per_partition = {
        AssetMetadataHandle(asset_key=asset_key, partition_key=partition): dict(values)
        for partition, values in metadata.items()
    }
    both = dict(step._metadata_accumulator.per_output_metadata)
    both.update(per_partition)
    step._metadata_accumulator = OutputMetadataAccumulator(per_output_metadata=both)
