"""Carry measurements over to a new version of segmentation: samples with the same steps are not measured again.

A signal of segments is stored under a fingerprint that includes the version of segmentation. When a shard is cut by a
newer version, `steps.segmentation` keeps what it was cut into before. The rows of samples that are cut the same way are
copied from the folder of the earlier version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.corpus.ingest import present_shards
from curation_assets.signals.store import SignalStore, shard_record_path, signal_dir
from curation_assets.steps.segmentation import INPUT, segment_frame, version_of
from curation_assets.tables.signals import SEGMENTED_SIGNALS, SignalName
from curation_assets.workspace.fingerprints import image_limits_key, input_fingerprint, segmentation_key
from curation_assets.workspace.versions import SEGMENTATION_VERSION
from curation_assets.workspace.workspace import Workspace

SPAN = ("sample_id", "kind", "step_index", "start", "end")


def earlier_store(workspace: Workspace, target: Target, signal: SignalName) -> SignalStore | None:
    """Return the store of a signal under the version of segmentation before this one, if it holds anything."""
    if signal not in SEGMENTED_SIGNALS:
        return None
    folder = signal_dir(workspace, target, signal, SEGMENTATION_VERSION - 1)
    if folder is None:
        return None
    earlier = SignalStore(workspace.warehouse, folder, image_limits_key(workspace, target))
    return earlier if earlier.parts() else None


def carry_over(workspace: Workspace, shard: str, stores: Iterable[tuple[SignalStore, SignalStore]]) -> None:
    """Copy a shard's measurements under the earlier version of segmentation that are still valid.

    Args:
        workspace: the configuration.
        shard: the shard, whose `segmented_steps` is current.
        stores: the earlier store and the current one of each signal.
    """
    valid = [(earlier, store) for earlier, store in stores if _measured_by_table(workspace, shard, earlier)]
    same = same_steps(workspace, shard) if valid else pl.Series("sample_id", [], dtype=pl.String)
    for earlier, store in valid:
        wanted = same.filter(same.is_in(sorted(store.missing(same))))
        rows = earlier.rows(wanted) if len(wanted) else None
        if rows is not None and not rows.is_empty():
            store.append(rows)


def carried(workspace: Workspace, target: Target, missing: Mapping[SignalName, set[str]]) -> dict[SignalName, set[str]]:
    """Return those of the samples without a measurement that the next run will carry over instead of measuring.

    Args:
        workspace: the configuration.
        target: the target.
        missing: the samples that lack each signal.
    """
    found = {signal: earlier_store(workspace, target, signal) for signal in missing}
    stores = {signal: store for signal, store in found.items() if store is not None}
    kept: dict[SignalName, set[str]] = {signal: set() for signal in missing}
    for shard in present_shards(workspace) if stores else ():
        valid = [signal for signal, earlier in stores.items() if _measured_by_table(workspace, shard, earlier)]
        same = set(same_steps(workspace, shard)) if valid else set()
        for signal in valid:
            lacking = same & missing[signal]
            kept[signal] |= lacking - stores[signal].missing(pl.Series(sorted(lacking), dtype=pl.String))
    return kept


def _measured_by_table(workspace: Workspace, shard: str, earlier: SignalStore) -> bool:
    """Return whether an earlier store was measured by the very table of steps that `same_steps` compares.

    Settings may have changed and changed back in between.
    """
    path, earlier_path = _paths(shard)
    facts = workspace.warehouse.table_metadata(path) or {}
    if version_of(facts, segmentation_key(workspace, 0)) == SEGMENTATION_VERSION:
        table = (workspace.warehouse.table_metadata(earlier_path) or {}).get(INPUT)
    else:
        table = input_fingerprint(facts) if "fingerprint" in facts else None
    record = workspace.warehouse.read_json(shard_record_path(earlier.folder, shard))
    return record is not None and record["input_fingerprint"] == table


def same_steps(workspace: Workspace, shard: str) -> pl.Series:
    """Return the samples of a shard that the current and the earlier version of segmentation cut the same way."""
    warehouse, (path, earlier_path) = workspace.warehouse, _paths(shard)
    settings, earlier = segmentation_key(workspace, 0), SEGMENTATION_VERSION - 1
    version, kept = (version_of(warehouse.table_metadata(each), settings) for each in (path, earlier_path))
    if version == SEGMENTATION_VERSION and kept == earlier:
        before, now = (warehouse.read_columns(each, *SPAN) for each in (earlier_path, path))
    elif version == earlier:
        # Not cut again yet.
        before = warehouse.read_columns(path, *SPAN)
        corpus = warehouse.read_table(f"{tables.raw_corpus_dir()}/{shard}.parquet")
        now = segment_frame(corpus, workspace.settings.corpus.segmentation).select(SPAN)
    else:
        return pl.Series("sample_id", [], dtype=pl.String)
    both = _spans(before).join(_spans(now), on="sample_id", how="inner", suffix="_now")
    return both.filter(pl.col("spans") == pl.col("spans_now"))["sample_id"].sort()


def _paths(shard: str) -> tuple[str, str]:
    """Return the paths of a shard's table of steps, and of what it held before the version was raised."""
    return f"{tables.segmented_steps_dir()}/{shard}.parquet", f"{tables.earlier_steps_dir()}/{shard}.parquet"


def _spans(steps: pl.DataFrame) -> pl.DataFrame:
    ordered = steps.sort("sample_id", "step_index").group_by("sample_id", maintain_order=True)
    return ordered.agg(pl.struct(pl.exclude("sample_id")).alias("spans"))
