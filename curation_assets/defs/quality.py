"""Assets of the quality stage, created if the corpus has filters: checks by shard, and the filtered pool."""

from typing import Any

import dagster as dg

from curation_assets import tables
from curation_assets.config.corpus_settings import CorpusFilters
from curation_assets.corpus.ingest import present_shards, refuse_losses
from curation_assets.defs.asset_metadata import OWNERS, column_schema, markdown_table, row_count
from curation_assets.defs.corpus import RAW_CORPUS_KEY
from curation_assets.defs.partition_metadata import add_partition_metadata
from curation_assets.defs.partitions import SHARDS
from curation_assets.quality.checks import check_shards
from curation_assets.quality.filtered_pool import by_benchmark, reason_counts, write_pool
from curation_assets.workspace.workspace import Workspace
from curation_resources.progress import track

SAMPLE_QUALITY_KEY = dg.AssetKey("sample_quality")
POOL_KEY = dg.AssetKey("pool")


def quality_keys(filters: CorpusFilters) -> list[dg.AssetKey]:
    """Return the keys of the stage's assets; empty without filters."""
    return [SAMPLE_QUALITY_KEY, POOL_KEY] if filters.any else []


def quality_assets(workspace: Workspace) -> list[dg.AssetsDefinition]:
    """Return the quality checks and the pool, if the corpus has filters."""
    filters = workspace.settings.corpus.filters
    return [_quality_asset(), _pool_asset(filters)] if filters.any else []


def _quality_asset() -> dg.AssetsDefinition:
    @dg.asset(
        key=SAMPLE_QUALITY_KEY,
        deps=[RAW_CORPUS_KEY],
        group_name="corpus",
        description=tables.SAMPLE_QUALITY.meaning,
        metadata=column_schema(tables.SAMPLE_QUALITY),
        owners=OWNERS,
        kinds={"polars", "parquet"},
        partitions_def=SHARDS,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def sample_quality(
        context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
    ) -> dg.MaterializeResult[Any]:
        shards = context.partition_keys
        metadata_by_shard = {}
        with track("checking shards", len(shards)) as advance:
            for shard, checked in zip(shards, check_shards(workspace, shards), strict=True):
                metadata_by_shard[shard] = row_count(len(checked), partitioned=True)
                advance(1)
        add_partition_metadata(context, context.asset_key, metadata_by_shard)
        return dg.MaterializeResult()

    return sample_quality


def _pool_asset(filters: CorpusFilters) -> dg.AssetsDefinition:
    @dg.asset(
        key=POOL_KEY,
        deps=[SAMPLE_QUALITY_KEY],
        group_name="corpus",
        description=tables.POOL.meaning,
        metadata=column_schema(tables.POOL),
        owners=OWNERS,
        kinds={"polars", "parquet"},
    )
    def pool(workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult[Any]:
        refuse_losses(workspace)
        present = present_shards(workspace)
        scan = workspace.warehouse.scan(tables.sample_quality_dir(), present)
        report = None
        if filters.contamination is not None and scan is not None:
            report = by_benchmark(scan, filters.contamination.share)
        # Written last: an existing pool is not requested again.
        made = write_pool(workspace, present)
        metadata: dict[str, Any] = row_count(len(made), partitioned=False) | {
            "kept": int(made["reason"].null_count()),
            "left_out": markdown_table(("reason", "samples"), reason_counts(made).items()),
        }
        if report is not None:
            metadata["contamination"] = markdown_table(report.columns, report.iter_rows())
        return dg.MaterializeResult(metadata=metadata)

    return pool
