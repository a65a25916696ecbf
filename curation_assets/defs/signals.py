"""Assets of the signals stage, created for every target of the configuration."""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.defs.asset_metadata import OWNERS, column_schema, markdown_table
from curation_assets.defs.checkpoints import measured_checkpoint_key, perturbation_key_of
from curation_assets.defs.corpus import RAW_CORPUS_KEY
from curation_assets.defs.partition_metadata import add_partition_metadata
from curation_assets.defs.partitions import SHARDS
from curation_assets.defs.steps import SEGMENTED_STEPS_KEY
from curation_assets.signals.measure import measure_shards
from curation_assets.signals.requests import non_finite
from curation_assets.signals.store import ShardMeasurement
from curation_assets.tables.signals import SEGMENTED_SIGNALS, SignalName
from curation_assets.workspace.versions import SIGNAL_VERSIONS
from curation_assets.workspace.workspace import Workspace

FINITE = "finite"


def signal_key(target: Target, signal: SignalName) -> dg.AssetKey:
    """Return the key of one signal of a target."""
    return dg.AssetKey([target.name, signal])


def signal_keys(target: Target) -> list[dg.AssetKey]:
    """Return the keys of all signals that a target lists."""
    return [signal_key(target, signal) for signal in target.signals]


def signal_assets(target: Target) -> list[dg.AssetsDefinition]:
    """Return one asset per signal, all made by one pass over the model; selecting some measures only these."""

    @dg.multi_asset(
        name=f"{target.name}_signals",
        specs=[_spec(target, signal) for signal in target.signals],
        can_subset=True,
        partitions_def=SHARDS,
        backfill_policy=dg.BackfillPolicy.single_run(),
        pool="gpu",
        check_specs=[dg.AssetCheckSpec(FINITE, asset=key) for key in signal_keys(target)],
    )
    def signals(
        context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
    ) -> Iterator[dg.MaterializeResult[Any]]:
        selected = [signal for signal in target.signals if signal_key(target, signal) in context.selected_asset_keys]
        broken = dict.fromkeys(selected, 0)
        finished: list[Mapping[SignalName, ShardMeasurement]] = []
        for records in measure_shards(workspace, target, context.partition_keys, selected):
            finished.append(records)
            for signal, record in records.items():
                broken[signal] += non_finite(record.without_value)
        left = len(context.partition_keys) - len(finished)
        for signal in selected:
            key = signal_key(target, signal)
            metadata_by_shard = {records[signal].shard: _metadata(records[signal]) for records in finished}
            if not left:
                add_partition_metadata(context, key, metadata_by_shard)
                continue
            # A result would cover the whole range, so report only the finished shards.
            for shard, metadata in metadata_by_shard.items():
                context.log_event(dg.AssetMaterialization(key, metadata=metadata, partition=shard))
        if left:
            context.log.warning(f"stopped at a limit (limits in curation.yaml): {left} shards stay outdated")
            return
        for signal in selected:
            key = signal_key(target, signal)
            # A person may have deselected the check for this run.
            wanted = dg.AssetCheckKey(key, FINITE) in context.selected_asset_check_keys
            checks = [_finite(key, broken[signal])] if wanted else []
            yield dg.MaterializeResult(asset_key=key, check_results=checks)

    return [signals]


def _spec(target: Target, signal: SignalName) -> dg.AssetSpec:
    table = tables.SIGNAL_TABLES[signal]
    return dg.AssetSpec(
        signal_key(target, signal),
        deps=[
            SEGMENTED_STEPS_KEY if signal in SEGMENTED_SIGNALS else RAW_CORPUS_KEY,
            measured_checkpoint_key(target),
            *([perturbation_key_of(target)] if signal == "perturbed_losses" else []),
        ],
        skippable=True,
        group_name=target.name,
        description=table.meaning,
        metadata=column_schema(table),
        owners=OWNERS,
        kinds={"pytorch", "parquet"},
        code_version=str(SIGNAL_VERSIONS[signal]),
    )


def _finite(key: dg.AssetKey, broken: int) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=FINITE,
        passed=broken == 0,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"samples_with_nan_or_inf": broken},
    )


def _metadata(record: ShardMeasurement) -> dict[str, Any]:
    """Return the metadata that the UI shows for one shard's signal."""
    # The visit's tokens count for this signal only if any of it was measured.
    tokens = record.tokens_run if record.measured else 0
    speed = tokens / record.seconds if record.seconds else 0.0
    return {
        "dagster/partition_row_count": record.rows,
        "measured": record.measured,
        "already_measured": record.skipped,
        "tokens_run": tokens,
        "seconds": record.seconds,
        "tokens_per_second": round(speed, 1),
        "device": record.device or "(nothing had to be measured)",
        "fingerprint": record.signal_fingerprint,
        "without_value": markdown_table(("reason", "samples"), record.without_value.items()),
    }
