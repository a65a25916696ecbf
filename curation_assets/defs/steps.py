"""Assets of the steps stage."""

from typing import Any

import dagster as dg

from curation_assets import tables
from curation_assets.corpus.many_shards import map_shards
from curation_assets.defs.asset_metadata import OWNERS, column_schema
from curation_assets.defs.corpus import RAW_CORPUS_KEY
from curation_assets.defs.partition_metadata import add_partition_metadata
from curation_assets.defs.partitions import SHARDS
from curation_assets.steps.segmentation import segment_shard
from curation_assets.workspace.versions import SEGMENTATION_VERSION
from curation_assets.workspace.workspace import Workspace
from curation_resources.progress import track

SEGMENTED_STEPS_KEY = dg.AssetKey("segmented_steps")


@dg.asset(
    key=SEGMENTED_STEPS_KEY,
    deps=[RAW_CORPUS_KEY],
    group_name="corpus",
    description=tables.SEGMENTED_STEPS.meaning,
    metadata=column_schema(tables.SEGMENTED_STEPS),
    owners=OWNERS,
    kinds={"polars", "parquet"},
    code_version=str(SEGMENTATION_VERSION),
    partitions_def=SHARDS,
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def segmented_steps(
    context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
) -> dg.MaterializeResult[Any]:
    """Cut every response into steps and an answer, by characters."""
    rows_by_shard = {}
    shards = list(context.partition_keys)
    with track("segmenting shards", len(shards)) as advance:
        for shard, made in zip(shards, map_shards(workspace, shards, segment_shard), strict=True):
            rows_by_shard[shard] = {
                "dagster/partition_row_count": made.rows,
                "samples": made.samples,
                "steps": made.steps,
                "answers": made.rows - made.steps,
                "merged_samples": made.merged_samples,
            }
            advance(1)
    add_partition_metadata(context, context.asset_key, rows_by_shard)
    return dg.MaterializeResult()
