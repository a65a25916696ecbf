"""`score_manifest`: the inputs of a target's scores, shard by shard."""

from __future__ import annotations

import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.corpus.duplicates import resolve_duplicates
from curation_assets.corpus.ingest import present_shards
from curation_assets.quality.filtered_pool import without_filtered
from curation_assets.signals.store import shard_records, signal_dir
from curation_assets.workspace.fingerprints import scored_signals_fingerprint
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.digests import digest, now

LENGTHS = ("response_tokens", "n_steps")


def build_manifest(workspace: Workspace, target: Target) -> pl.DataFrame:
    """Build the target's manifest from the stored tables: one row for every shard with scores."""
    present = set(present_shards(workspace))
    corpus = workspace.warehouse.folder_metadata(tables.raw_corpus_dir())
    scores = workspace.warehouse.folder_metadata(tables.sample_scores_dir(target.name))
    signals_fp = scored_signals_fingerprint(workspace, target)
    signals = workspace.settings.signals_of_scores(target)
    recorded = [shard_records(workspace, signal_dir(workspace, target, signal)) for signal in signals]
    rows = []
    for shard, metadata in scores.items():
        records = [own[shard] for own in recorded if shard in own]
        facts = corpus[shard]
        rows.append(
            {
                "shard": shard,
                "path": facts["path"],
                "content_digest": facts["content_digest"],
                "present": shard in present,
                "signal_fingerprint": signals_fp or "",
                "score_fingerprint": metadata["fingerprint"],
                "rows": int(facts["rows"]),
                "rejected": int(facts["rejected"]),
                # One pass measures all signals, so each of their tables records its tokens.
                "tokens": max((int(record["tokens"]) for record in records), default=0),
            }
        )
    return tables.SCORE_MANIFEST.conform(pl.DataFrame(rows, schema=tables.SCORE_MANIFEST.schema))


def manifest_digest(manifest: pl.DataFrame) -> str:
    """Return the data version of a manifest: a digest of its content."""
    return digest("score_manifest", manifest.to_dicts())


def write_manifest(workspace: Workspace, target: Target) -> tuple[pl.DataFrame, str]:
    """Write the target's manifest; return it with its digest."""
    manifest = build_manifest(workspace, target)
    version = manifest_digest(manifest)
    metadata = {"fingerprint": version, "made": now()}
    workspace.warehouse.write_table(tables.score_manifest_path(target.name), manifest, metadata)
    return manifest, version


def present_scores(workspace: Workspace, target: Target) -> pl.LazyFrame | None:
    """Return `sample_scores` of the shards that the target's manifest lists as present; None without a manifest."""
    path = tables.score_manifest_path(target.name)
    if not workspace.warehouse.table_metadata(path):
        return None
    manifest = workspace.warehouse.read_table(path)
    return workspace.warehouse.scan(tables.sample_scores_dir(target.name), manifest.filter("present")["shard"])


def scored_pool(workspace: Workspace) -> pl.DataFrame:
    """Return each sample once with its source, lengths, and the scores of all targets."""
    pool: pl.DataFrame | None = None
    for target in workspace.settings.targets:
        stored = present_scores(workspace, target)
        if stored is None:
            continue
        # Tables written before a score was configured lack its column.
        there = stored.collect_schema().names()
        names = [score.name for score in workspace.settings.scores_of(target.name) if score.name in there]
        rows, _ = without_filtered(workspace, resolve_duplicates(stored).rows)
        rows = rows.select("sample_id", "source", *LENGTHS, *names)
        if pool is None:
            pool = rows
        else:
            # Targets may be at different stages: take a sample's facts from whichever target has them.
            facts = ("source", *LENGTHS)
            pool = pool.join(rows, on="sample_id", how="full", coalesce=True, suffix="_other")
            pool = pool.with_columns(pl.coalesce(name, f"{name}_other") for name in facts)
            pool = pool.drop(f"{name}_other" for name in facts)
    return tables.SAMPLE_SCORES.empty().select("sample_id", "source", *LENGTHS) if pool is None else pool
