"""Shared by reports over signals: the pool samples that a target measured, and a digest that detects changes."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.corpus.duplicates import resolve_duplicates
from curation_assets.quality.filtered_pool import stored_pool, without_filtered
from curation_assets.signals.store import SignalStore, shard_records, signal_dir
from curation_assets.subsets.manifest import present_scores
from curation_assets.tables.signals import SignalName
from curation_assets.workspace.workspace import Workspace

POOL_KEYS = ("sample_id", "prompt_id", "shard", "row", "candidate")
"""Columns by which duplicates are resolved."""


def measurements_now(workspace: Workspace, targets: Sequence[Target], signal: SignalName) -> list[object] | None:
    """Return everything that a report over a signal depends on: manifests, measurement records, filters.

    Return None if no target has a manifest yet, or if the pool's filters have not been applied.
    """
    parts: list[object] = []
    pool = stored_pool(workspace)
    if workspace.settings.corpus.filters.any and pool is None:
        return None
    for target in targets:
        path = tables.score_manifest_path(target.name)
        manifest = workspace.warehouse.table_metadata(path).get("fingerprint")
        folder = signal_dir(workspace, target, signal)
        if manifest is None or folder is None:
            continue
        records, stored = {}, shard_records(workspace, folder)
        for shard in workspace.warehouse.read_table(path).filter("present")["shard"]:
            record = stored.get(shard)
            names = ("input_fingerprint", "image_limits", "left_out")
            records[shard] = None if record is None else [record[name] for name in names]
        parts.append([target.name, manifest, folder, records])
    return [pool, parts] if parts else None


def measured_pool(
    workspace: Workspace, target: Target, signal: SignalName, columns: Sequence[str], facts: Sequence[str] = ()
) -> pl.DataFrame | None:
    """Return a row per pool sample that the target measured: sample_id, `facts` of `sample_scores`, `columns`.

    Return None before the target has scores.
    """
    stored = present_scores(workspace, target)
    if stored is None or signal_dir(workspace, target, signal) is None:
        return None
    wanted = dict.fromkeys([*POOL_KEYS, *facts])
    pool, _ = without_filtered(workspace, resolve_duplicates(stored.select(*wanted)).rows)
    pool = pool.select("sample_id", *facts)
    rows = SignalStore.of(workspace, target, signal).rows(pool["sample_id"])
    if rows is None:
        return pool.clear().join(_no_rows(signal, columns), on="sample_id", how="inner")
    return pool.join(rows.select("sample_id", *columns), on="sample_id", how="inner")


def _no_rows(signal: SignalName, columns: Sequence[str]) -> pl.DataFrame:
    return tables.SIGNAL_TABLES[signal].empty().select("sample_id", *columns)
