"""Assets of the steps stage."""

from typing import Any

import dagster as dg
import polars as pl

from curation_assets import tables
from curation_assets.defs.asset_metadata import OWNERS, column_schema, tell_partitions
from curation_assets.defs.corpus import RAW_CORPUS_KEY
from curation_assets.defs.partitions import SHARDS
from curation_assets.steps.segment import segment_shard
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
    told = {}
    with track("segmenting shards", len(context.partition_keys)) as advance:
        for shard in context.partition_keys:
            steps = segment_shard(workspace, shard)
            spans = steps.filter(pl.col("kind") == "step")
            told[shard] = {
                "dagster/partition_row_count": len(steps),
                "samples": steps["sample_id"].n_unique(),
                "steps": len(spans),
                "answers": len(steps) - len(spans),
                "merged_samples": steps.filter("merged")["sample_id"].n_unique(),
            }
            advance(1)
    tell_partitions(context, context.asset_key, told)
    return dg.MaterializeResult()
