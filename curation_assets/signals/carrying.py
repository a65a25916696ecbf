"""Carry measurements over to a new version of segmentation: samples with the same steps are not measured again.

A signal of segments is stored under a fingerprint that includes the version of segmentation. When a shard is cut by a
newer version, `steps.segmentation` keeps what it was cut into before. The rows of samples that are cut the same way are
copied from the folder of the earlier version.
"""

from __future__ import annotations

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


def carry_over(workspace: Workspace, shard: str, earlier: SignalStore, store: SignalStore) -> int:
    """Copy a shard's measurements under an earlier version of segmentation that are still valid; return their number.

    Args:
        workspace: the configuration.
        shard: the shard, whose `segmented_steps` is current.
        earlier: the store of a signal under the earlier version.
        store: its store under this version.
    """
    same = same_steps(workspace, shard, earlier)
    wanted = same.filter(same.is_in(sorted(store.missing(same))))
    rows = earlier.rows(wanted) if len(wanted) else None
    if rows is None or rows.is_empty():
        return 0
    store.append(rows)
    return len(rows)


def earlier_store(workspace: Workspace, target: Target, signal: SignalName) -> SignalStore | None:
    """Return the store of a signal under the version of segmentation before this one, if it holds anything."""
    if signal not in SEGMENTED_SIGNALS:
        return None
    folder = signal_dir(workspace, target, signal, SEGMENTATION_VERSION - 1)
    if folder is None:
        return None
    earlier = SignalStore(workspace.warehouse, folder, image_limits_key(workspace, target))
    return earlier if earlier.parts() else None


def carried(workspace: Workspace, target: Target, signal: SignalName, missing: set[str]) -> set[str]:
    """Return those of the samples without a measurement that the next run will carry over instead of measuring."""
    earlier = earlier_store(workspace, target, signal)
    if earlier is None or not missing:
        return set()
    held = missing - earlier.missing(pl.Series(sorted(missing)))
    return (
        held & {name for shard in present_shards(workspace) for name in same_steps(workspace, shard, earlier)}
        if held
        else held
    )


def same_steps(workspace: Workspace, shard: str, earlier: SignalStore) -> pl.Series:
    """Return the samples of a shard that the current and the earlier version of segmentation cut the same way.

    Empty unless the earlier store was measured by the very table that is compared: settings may have changed and
    changed back in between.
    """
    warehouse, name = workspace.warehouse, f"{shard}.parquet"
    path, earlier_path = f"{tables.segmented_steps_dir()}/{name}", f"{tables.earlier_steps_dir()}/{name}"
    settings, facts = segmentation_key(workspace, 0), warehouse.table_metadata(path) or {}
    none = pl.Series("sample_id", [], dtype=pl.String)
    record = warehouse.read_json(shard_record_path(earlier.folder, shard)) or {}
    if version_of(facts, settings) == SEGMENTATION_VERSION:
        kept = warehouse.table_metadata(earlier_path) or {}
        measured_by = kept.get(INPUT)
        if version_of(kept, settings) != SEGMENTATION_VERSION - 1 or record.get("input_fingerprint") != measured_by:
            return none
        before, now = (warehouse.read_columns(each, *SPAN) for each in (earlier_path, path))
    elif version_of(facts, settings) == SEGMENTATION_VERSION - 1:
        # Not cut again yet.
        if record.get("input_fingerprint") != input_fingerprint(facts):
            return none
        before = warehouse.read_columns(path, *SPAN)
        corpus = warehouse.read_table(f"{tables.raw_corpus_dir()}/{name}")
        now = segment_frame(corpus, workspace.settings.corpus.segmentation).select(SPAN)
    else:
        return none
    both = _spans(before).join(_spans(now), on="sample_id", how="inner", suffix="_now")
    return both.filter(pl.col("spans") == pl.col("spans_now"))["sample_id"].sort()


def _spans(steps: pl.DataFrame) -> pl.DataFrame:
    ordered = steps.sort("sample_id", "step_index").group_by("sample_id", maintain_order=True)
    return ordered.agg(pl.struct(pl.exclude("sample_id")).alias("spans"))
