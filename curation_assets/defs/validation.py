"""Assets of the validation stage: one per set, and one per target for the signals that its scores need of them."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from curation_assets import tables
from curation_assets.config.corpus_settings import ValidationSet
from curation_assets.config.settings import Target
from curation_assets.corpus.held_out import overlap_with_pool, write_validation
from curation_assets.defs.asset_metadata import OWNERS, column_schema, markdown_table, row_count
from curation_assets.defs.checkpoints import measured_checkpoint_key
from curation_assets.signals.held_out import measure_validation, validation_of
from curation_assets.workspace.workspace import Workspace
from curation_resources.text import escape_cell

TOKENS_RUN = "tokens_run"
"""Metadata key of `validation_signals`: tokens run through the model."""


def validation_set_key(name: str) -> dg.AssetKey:
    """Return the key of a validation set's rows."""
    return dg.AssetKey(["validation", name])


def validation_signals_key(target: Target) -> dg.AssetKey:
    """Return the key of the signals that a target measures on validation sets."""
    return dg.AssetKey([target.name, "validation_signals"])


def validation_keys(workspace: Workspace, target: Target) -> list[dg.AssetKey]:
    """Return the keys of the sets that a target's scores need, then of their signals; empty without any."""
    names = list(validation_of(workspace, target))
    return [*map(validation_set_key, names), validation_signals_key(target)] if names else []


def validation_set_asset(validation: ValidationSet) -> dg.AssetsDefinition:
    """Return the asset of one validation set."""
    key = validation_set_key(validation.name)

    @dg.asset(
        key=key,
        group_name="validation",
        description=f"Held-out samples of {escape_cell(validation.path)}, with which methods compare the pool.",
        metadata=column_schema(tables.RAW_CORPUS),
        owners=OWNERS,
        kinds={"polars", "parquet"},
        check_specs=[dg.AssetCheckSpec("disjoint_from_pool", asset=key)],
    )
    def validation_set(workspace: dg.ResourceParam[Workspace]) -> Iterator[dg.MaterializeResult[Any]]:
        rows = write_validation(workspace, validation)
        overlap = overlap_with_pool(workspace, validation.name)
        reasons = rows.rejected.group_by("reason").len().sort("reason")
        yield dg.MaterializeResult(
            metadata=row_count(len(rows.accepted), partitioned=False)
            | {"rejected": markdown_table(("reason", "rows"), reasons.iter_rows()), **overlap},
            check_results=[
                dg.AssetCheckResult(
                    check_name="disjoint_from_pool",
                    passed=not any(overlap.values()),
                    severity=dg.AssetCheckSeverity.WARN,
                    description="Held-out prompts must not be in the pool: the evaluation would be contaminated.",
                    metadata=overlap,
                )
            ],
        )

    return validation_set


def validation_signals_asset(workspace: Workspace, target: Target) -> list[dg.AssetsDefinition]:
    """Return the asset of a target's signals on validation sets; empty if its scores need none."""
    wanted = validation_of(workspace, target)
    if not wanted:
        return []

    @dg.asset(
        key=validation_signals_key(target),
        deps=[*map(validation_set_key, wanted), measured_checkpoint_key(target)],
        group_name=target.name,
        description="Signals of the validation sets that the target's scores compare the pool with.",
        owners=OWNERS,
        kinds={"pytorch", "parquet"},
        pool="gpu",
    )
    def validation_signals(workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult[Any]:
        done = measure_validation(workspace, target)
        rows = [
            (name, signal, record.rows, record.measured, record.skipped)
            for name, records in done.items()
            for signal, record in records.items()
        ]
        headers = ("validation set", "signal", "samples", "measured", "already measured")
        return dg.MaterializeResult(
            metadata={
                "signals": markdown_table(headers, rows),
                # All signals of a set are measured in one visit, which each of their records describes.
                TOKENS_RUN: sum(next(iter(records.values())).tokens_run for records in done.values()),
            }
        )

    return [validation_signals]
