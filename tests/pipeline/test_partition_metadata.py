"""Metadata of many partitions attached at once, against Dagster's own way, one at a time."""

from typing import Any

import dagster as dg

from curation_assets.defs.partition_metadata import add_partition_metadata

PARTITIONS = dg.DynamicPartitionsDefinition(name="parts")
KEYS = [f"part-{number}" for number in range(6)]
ASSETS = [dg.AssetKey(["a", "b"]), dg.AssetKey("c")]


def metadata_of_run(at_once: bool) -> dict[tuple[str, str | None], dict[str, Any]]:
    """Metadata of every materialization of a run over some partitions, by asset and partition."""

    @dg.multi_asset(
        specs=[dg.AssetSpec(key) for key in ASSETS],
        partitions_def=PARTITIONS,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def both(context: dg.AssetExecutionContext) -> Any:
        for key in ASSETS:
            metadata = {
                part: {"rows": len(part), "table": dg.MetadataValue.md(part)} for part in context.partition_keys
            }
            if at_once:
                add_partition_metadata(context, key, metadata)
            else:
                for part, values in metadata.items():
                    context.add_asset_metadata(values, asset_key=key, partition_key=part)
            yield dg.MaterializeResult(asset_key=key, metadata={"whole": True})

    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("parts", KEYS)
        tags = {"dagster/asset_partition_range_start": KEYS[1], "dagster/asset_partition_range_end": KEYS[4]}
        job = dg.Definitions(assets=[both]).resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(instance=instance, tags=tags)
        events = [event.materialization for event in result.get_asset_materialization_events()]
    return {(str(e.asset_key), e.partition): {name: value.value for name, value in e.metadata.items()} for e in events}


def test_metadata_attached_at_once_equals_that_attached_one_at_a_time() -> None:
    found = metadata_of_run(at_once=True)
    assert found == metadata_of_run(at_once=False)
    assert found["AssetKey(['c'])", "part-2"] == {"rows": 6, "table": "part-2", "whole": True}
    assert len(found) == 8
