"""Assets of the scores stage, created for every target of the configuration."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.corpus.ingest import refuse_losses
from curation_assets.defs.asset_metadata import (
    OWNERS,
    column_schema,
    finite,
    freshness_policy,
    markdown_table,
    row_count,
)
from curation_assets.defs.conditions import FOLLOW_UPSTREAM
from curation_assets.defs.partition_metadata import add_partition_metadata
from curation_assets.defs.partitions import SHARDS
from curation_assets.defs.signals import signal_key
from curation_assets.defs.steps import SEGMENTED_STEPS_KEY
from curation_assets.defs.validation import validation_keys
from curation_assets.methods.registry import method_of
from curation_assets.subsets.manifest import present_scores, write_manifest
from curation_assets.subsets.shard_scores import ShardScores, score_shards
from curation_assets.workspace.fingerprints import scores_key
from curation_assets.workspace.workspace import Workspace
from curation_resources.plots import histogram
from curation_resources.progress import track

MANY_WITHOUT_ANSWER = 0.2


def step_scores_key(target: Target) -> dg.AssetKey:
    """Return the key of the scores of single steps."""
    return dg.AssetKey([target.name, "step_scores"])


def sample_scores_key(target: Target) -> dg.AssetKey:
    """Return the key of the sample scores: one row per sample, one column per named score."""
    return dg.AssetKey([target.name, "sample_scores"])


def score_manifest_key(target: Target) -> dg.AssetKey:
    """Return the key of the manifest of a target's scores."""
    return dg.AssetKey([target.name, "score_manifest"])


def score_keys(workspace: Workspace, target: Target) -> list[dg.AssetKey]:
    """Return the assets made by scoring a shard: sample_scores, and step_scores if some method scores steps."""
    steps = any(method_of(score).scores_steps for score in workspace.settings.scores_of(target.name))
    return [*([step_scores_key(target)] if steps else []), sample_scores_key(target)]


def score_assets(workspace: Workspace, target: Target) -> list[dg.AssetsDefinition]:
    """Return step_scores and sample_scores of every shard, and the manifest over them."""
    signals = workspace.settings.signals_of_scores(target)
    keys, sample_key = score_keys(workspace, target), sample_scores_key(target)

    @dg.multi_asset(
        name=f"{target.name}_scores",
        specs=[
            dg.AssetSpec(
                key,
                deps=[
                    *(signal_key(target, signal) for signal in signals),
                    *validation_keys(workspace, target)[-1:],
                    SEGMENTED_STEPS_KEY,
                ],
                group_name=target.name,
                description=table.meaning,
                metadata=column_schema(table),
                owners=OWNERS,
                kinds={"polars", "parquet"},
                code_version=scores_key(workspace, target),
                automation_condition=FOLLOW_UPSTREAM,
            )
            for key in keys
            for table in (tables.ALL_TABLES[key.path[-1]],)
        ],
        partitions_def=SHARDS,
        backfill_policy=dg.BackfillPolicy.single_run(),
        check_specs=[
            dg.AssetCheckSpec("finite_scores", asset=sample_key),
            dg.AssetCheckSpec("answers_found", asset=sample_key),
        ],
    )
    def scores(
        context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
    ) -> Iterator[dg.MaterializeResult[Any]]:
        refuse_losses(workspace)
        scored: list[ShardScores] = []
        metadata_by_shard = {}
        with track(f"{target.name}: scoring shards", len(context.partition_keys)) as advance:
            shards = context.partition_keys
            for shard, result in zip(shards, score_shards(workspace, target, shards), strict=True):
                scored.append(result)
                metadata_by_shard[shard] = {
                    "dagster/partition_row_count": result.rows,
                    "scored": result.scored,
                    "without_score": markdown_table(("reason", "samples"), result.without_score.items()),
                }
                advance(1)
        add_partition_metadata(context, sample_key, metadata_by_shard)
        if step_scores_key(target) in keys:
            yield dg.MaterializeResult(asset_key=step_scores_key(target))
        yield dg.MaterializeResult(asset_key=sample_key, check_results=_checks(scored))

    return [scores, _manifest_asset(workspace, target, sample_key)]


def _manifest_asset(workspace: Workspace, target: Target, sample_key: dg.AssetKey) -> dg.AssetsDefinition:
    names = [score.name for score in workspace.settings.scores_of(target.name)]

    @dg.asset(
        key=score_manifest_key(target),
        deps=[sample_key],
        group_name=target.name,
        description=tables.SCORE_MANIFEST.meaning,
        metadata=column_schema(tables.SCORE_MANIFEST),
        owners=OWNERS,
        kinds={"polars", "parquet"},
        freshness_policy=freshness_policy(workspace.settings.freshness),
    )
    def score_manifest(workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult[Any]:
        manifest, version = write_manifest(workspace, target)
        shown = manifest.select("path", "rows", "rejected", "tokens", "present", "content_digest")
        metadata: dict[str, Any] = row_count(len(manifest), partitioned=False) | {
            "samples": int(manifest["rows"].sum()),
            "tokens": int(manifest["tokens"].sum()),
            "shards": markdown_table(shown.columns, shown.head(50).iter_rows()),
        }
        scan = present_scores(workspace, target)
        if scan is not None:
            # Tables written before a score was configured lack its column.
            there = [name for name in names if name in scan.collect_schema().names()]
            scored = scan.select("sample_id", *there).unique("sample_id").collect()
            for name in there:
                title = f"{name} of every sample"
                plot = histogram({"samples": finite(scored, name)}, title, name)
                metadata[f"histogram_{name}"] = dg.MetadataValue.md(plot)
        return dg.MaterializeResult(data_version=dg.DataVersion(version), metadata=metadata)

    return score_manifest


def _checks(scored: list[ShardScores]) -> list[dg.AssetCheckResult]:
    rows = sum(result.rows for result in scored)
    non_finite = sum(result.non_finite for result in scored)
    without_answer = sum(
        len(result.sample_scores.filter(pl.col("flags").list.contains("no_answer"))) for result in scored
    )
    share = without_answer / rows if rows else 0.0
    return [
        dg.AssetCheckResult(
            check_name="finite_scores", passed=non_finite == 0, metadata={"scores_not_finite": non_finite}
        ),
        dg.AssetCheckResult(
            check_name="answers_found",
            passed=share <= MANY_WITHOUT_ANSWER,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"samples_without_answer": without_answer, "share": share},
        ),
    ]
