"""The filtered pool: samples that pass the filters, and the reasons why others do not."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from curation_assets import tables
from curation_assets.config.corpus_settings import CorpusFilters
from curation_assets.quality.checks import QualityError, checks_key, exceeded, quality_fingerprint
from curation_assets.quality.near_duplicates import near_duplicate_groups
from curation_assets.workspace.fingerprints import input_fingerprint
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.digests import digest, now

POOL_VERSION = 1


def quality_due(workspace: Workspace, present: Sequence[str]) -> list[str]:
    """Return the present shards whose `sample_quality` is missing or outdated (other text, checks or benchmarks)."""
    if not workspace.settings.corpus.filters.any:
        return []
    corpus = workspace.warehouse.folder_metadata(tables.raw_corpus_dir())
    stored = workspace.warehouse.folder_metadata(tables.sample_quality_dir())
    checks = checks_key(workspace)
    due = []
    for shard in present:
        if shard not in corpus:
            continue
        wanted = quality_fingerprint(checks, input_fingerprint(corpus[shard]))
        if stored.get(shard, {}).get("fingerprint") != wanted:
            due.append(shard)
    return due


def wanted_pool(workspace: Workspace, present: Sequence[str]) -> str:
    """Return the fingerprint of the pool for the present shards' quality and the current thresholds."""
    stored = workspace.warehouse.folder_metadata(tables.sample_quality_dir())
    parts = [(shard, stored[shard].get("fingerprint")) for shard in sorted(present) if shard in stored]
    return digest("pool", POOL_VERSION, parts, workspace.settings.corpus.filters.model_dump(mode="json"))


def stored_pool(workspace: Workspace) -> str | None:
    """Return the fingerprint of the stored pool; None without filters, or before the pool is built."""
    if not workspace.settings.corpus.filters.any:
        return None
    return workspace.warehouse.table_metadata(tables.pool_path()).get("fingerprint")


def pool_due(workspace: Workspace, present: Sequence[str]) -> bool:
    """Return whether filters are configured and the stored pool is outdated (other shards, checks or thresholds)."""
    return workspace.settings.corpus.filters.any and stored_pool(workspace) != wanted_pool(workspace, present)


def write_pool(workspace: Workspace, present: Sequence[str]) -> pl.DataFrame:
    """Apply the filters to all present shards, and write table `pool`."""
    fingerprint = wanted_pool(workspace, present)
    scan = workspace.warehouse.scan(tables.sample_quality_dir(), present)
    quality = tables.SAMPLE_QUALITY.empty() if scan is None else scan.collect()
    pool = tables.POOL.conform(apply(quality.unique("sample_id", keep="any"), workspace.settings.corpus.filters))
    workspace.warehouse.write_table(tables.pool_path(), pool, {"fingerprint": fingerprint, "made": now()})
    return pool


def without_filtered(workspace: Workspace, rows: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the rows that pass the pool's filters, and the number of rows that do not, by reason.

    Raises:
        QualityError: filters are configured, but the pool is missing or lacks some of the samples.
    """
    known = pool_table(workspace)
    if known is None:
        return rows, {}
    pool = known.select("sample_id", "reason", _known=pl.lit(value=True)).collect()
    marked = rows.join(pool, on="sample_id", how="left", maintain_order="left")
    refuse_unknown(marked["_known"].null_count())
    out = marked.filter(pl.col("reason").is_not_null())
    return marked.filter(pl.col("reason").is_null()).select(rows.columns), reason_counts(out)


def pool_table(workspace: Workspace) -> pl.LazyFrame | None:
    """Return table `pool`; None if no filters are configured.

    Raises:
        QualityError: filters are configured, but the pool is missing.
    """
    if not workspace.settings.corpus.filters.any:
        return None
    known = workspace.warehouse.scan_table(tables.pool_path())
    if known is None or stored_pool(workspace) is None:
        raise QualityError("the pool's filters have not been applied. Materialize pool, or use `curate run`.")
    return known


def refuse_unknown(count: int) -> None:
    """Check that table `pool` lacks no sample.

    Raises:
        QualityError: `count` is not zero.
    """
    if count:
        raise QualityError(
            f"{count} samples have not been checked by the filters of the corpus (corpus.filters). Run `curate run`, "
            "or materialize sample_quality and pool."
        )


def reason_counts(pool: pl.DataFrame) -> dict[str, int]:
    """Return the number of filtered samples, by reason."""
    counts = pool.drop_nulls("reason").group_by("reason").len().sort("reason")
    return dict(counts.iter_rows())


def apply(quality: pl.DataFrame, filters: CorpusFilters) -> pl.DataFrame:
    """Return table `pool` for rows of `sample_quality`, each sample once.

    A sample is excluded for the first of: contamination, language, repetition, near-duplicate. Near-duplicates are
    searched among the samples that pass the other filters; of each group, the smallest sample_id is kept.
    """
    reason, detail = pl.lit(None, dtype=pl.String), pl.lit(None, dtype=pl.String)
    if filters.repetition is not None:
        quality = quality.with_columns(_exceeded=exceeded(quality, filters.repetition))
        over = pl.col("_exceeded").list.len() > 0
        reason, detail = _first(over, "repetitive", pl.col("_exceeded").list.join(", "), reason, detail)
    if filters.languages is not None:
        other = ~pl.col("language").is_in(filters.languages) & (pl.col("confidence") >= filters.language_confidence)
        reason, detail = _first(other.fill_null(value=False), "language", pl.col("language"), reason, detail)
    if filters.contamination is not None:
        reached = pl.col("benchmark_share").list.eval(pl.element() >= filters.contamination.share)
        places = reached.list.eval(pl.element().arg_true())
        named = pl.col("benchmarks").list.gather(places).list.join(", ")
        found = reached.list.any().fill_null(value=False)
        reason, detail = _first(found, "contaminated", named, reason, detail)
    marked = quality.select("sample_id", "signature", reason=reason, detail=detail)
    if filters.near_duplicates is not None:
        left = marked.filter(pl.col("reason").is_null() & pl.col("signature").is_not_null())
        groups = near_duplicate_groups(left["sample_id"], left["signature"], filters.near_duplicates)
        copies = groups.filter(pl.col("sample_id") != pl.col("representative"))
        marked = marked.join(copies, on="sample_id", how="left").with_columns(
            reason=pl.when(pl.col("representative").is_not_null())
            .then(pl.lit("near_duplicate"))
            .otherwise(pl.col("reason")),
            detail=pl.coalesce("representative", "detail"),
        )
    return marked.select("sample_id", "reason", "detail")


def _first(found: pl.Expr, name: str, what: pl.Expr, reason: pl.Expr, detail: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    """Add a filter that takes precedence over the earlier ones to reason and detail."""
    return pl.when(found).then(pl.lit(name)).otherwise(reason), pl.when(found).then(what).otherwise(detail)


def by_benchmark(quality: pl.LazyFrame, share: float) -> pl.DataFrame:
    """Return the contamination report: by benchmark, samples that overlap at all, and samples that reach the share."""
    pairs = (
        quality.select("sample_id", "benchmarks", "benchmark_share")
        .unique("sample_id")
        .explode("benchmarks", "benchmark_share")
        .drop_nulls("benchmarks")
    )
    counts = pairs.group_by(benchmark="benchmarks").agg(
        overlapping=pl.len(),
        contaminated=(pl.col("benchmark_share") >= share).sum(),
        largest=pl.col("benchmark_share").max(),
    )
    return counts.sort("benchmark").collect()
