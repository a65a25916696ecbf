"""`score_manifest`: what stands behind a target's scores, shard by shard."""

from __future__ import annotations

import polars as pl

from curation_assets import tables
from curation_assets.corpus.ingest import present_shards
from curation_assets.fingerprints import signal_fingerprint
from curation_assets.settings import Target
from curation_assets.signals.store import shard_record_path, signal_dir
from curation_assets.workspace import Workspace
from resources.digests import digest


def build_manifest(workspace: Workspace, target: Target) -> pl.DataFrame:
    """The target's manifest as the stored tables say: one row for every shard that has scores."""
    present = set(present_shards(workspace))
    corpus = workspace.warehouse.folder_metadata(tables.raw_corpus_dir())
    scores = workspace.warehouse.folder_metadata(tables.sample_scores_dir(target.name))
    signal_fp = signal_fingerprint(workspace, target, "step_gradients")
    folder = signal_dir(workspace, target, "step_gradients")
    rows = []
    for shard, metadata in scores.items():
        record = workspace.warehouse.read_json(shard_record_path(folder, shard)) if folder else None
        facts = corpus[shard]
        rows.append(
            {
                "shard": shard,
                "path": facts["path"],
                "content_digest": facts["content_digest"],
                "present": shard in present,
                "signal_fingerprint": record["signal_fingerprint"] if record else signal_fp or "",
                "score_fingerprint": metadata["fingerprint"],
                "rows": int(facts["rows"]),
                "rejected": int(facts["rejected"]),
                "tokens": int(record["tokens"]) if record else 0,
            }
        )
    return tables.SCORE_MANIFEST.conform(pl.DataFrame(rows, schema=tables.SCORE_MANIFEST.schema))


def manifest_digest(manifest: pl.DataFrame) -> str:
    """Data version of a manifest: equal content, equal digest."""
    return digest("score_manifest", manifest.to_dicts())


def write_manifest(workspace: Workspace, target: Target) -> tuple[pl.DataFrame, str]:
    """Write the target's manifest; gives it with its digest."""
    manifest = build_manifest(workspace, target)
    version = manifest_digest(manifest)
    workspace.warehouse.write_table(tables.score_manifest_path(target.name), manifest, {"fingerprint": version})
    return manifest, version
