"""Assets of the signals stage, made for every target of the configuration."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from curation_assets import tables
from curation_assets.asset_metadata import OWNERS, column_schema, markdown_table
from curation_assets.checkpoints.assets import measured_checkpoint_key
from curation_assets.fingerprints import STEP_GRADIENTS_VERSION
from curation_assets.partitions import SHARDS
from curation_assets.settings import Target
from curation_assets.signals.measure import measure_shards
from curation_assets.steps.assets import SEGMENTED_STEPS_KEY
from curation_assets.workspace import Workspace


def step_gradients_key(target: Target) -> dg.AssetKey:
    """GRACE's signal for a target."""
    return dg.AssetKey([target.name, "step_gradients"])


def signal_assets(target: Target) -> list[dg.AssetsDefinition]:
    """One asset a pass over the model."""

    @dg.asset(
        key=step_gradients_key(target),
        deps=[SEGMENTED_STEPS_KEY, measured_checkpoint_key(target)],
        group_name=target.name,
        description=tables.STEP_GRADIENTS.meaning,
        metadata=column_schema(tables.STEP_GRADIENTS),
        owners=OWNERS,
        kinds={"pytorch", "parquet"},
        code_version=str(STEP_GRADIENTS_VERSION),
        partitions_def=SHARDS,
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool="gpu",
        check_specs=[dg.AssetCheckSpec("finite_gradients", asset=step_gradients_key(target))],
    )
    def step_gradients(
        context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
    ) -> Iterator[dg.MaterializeResult[Any]]:
        broken = 0
        for record in measure_shards(workspace, target, context.partition_keys):
            broken += record.without_score.get("non_finite", 0)
            speed = record.tokens_measured / record.seconds if record.seconds else 0.0
            context.add_asset_metadata(
                {
                    "dagster/partition_row_count": record.rows,
                    "measured": record.measured,
                    "already_measured": record.skipped,
                    "tokens_measured": record.tokens_measured,
                    "seconds": record.seconds,
                    "tokens_per_second": round(speed, 1),
                    "device": record.device or "(nothing had to be measured)",
                    "fingerprint": record.signal_fingerprint,
                    "without_gram_matrix": markdown_table(("reason", "samples"), record.without_score.items()),
                },
                partition_key=record.shard,
            )
        yield dg.MaterializeResult(
            check_results=[
                dg.AssetCheckResult(
                    passed=broken == 0,
                    severity=dg.AssetCheckSeverity.WARN,
                    metadata={"samples_with_nan_or_inf": broken},
                )
            ]
        )

    return [step_gradients]
