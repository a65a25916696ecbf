"""The dynamic partition sets (shards, and the releases of each subset), and the tags of runs over them."""

from collections.abc import Sequence

import dagster as dg

STAGE_TAG = "curation/stage"
"""Tag with the stage of a run requested by a sensor or `curate run`."""

SHARDS = dg.DynamicPartitionsDefinition(name="shards")
"""One partition per landing file; see `curation_resources.storage.landing.partition_key`."""


PARTITIONS_AT_ONCE = 10_000
"""Partitions to add in one call: Dagster queries for all of them, and SQLite limits the variables of a query."""


def add_partitions(instance: dg.DagsterInstance, name: str, keys: Sequence[str]) -> None:
    """Add dynamic partitions, however many."""
    for begin in range(0, len(keys), PARTITIONS_AT_ONCE):
        instance.add_dynamic_partitions(name, list(keys[begin : begin + PARTITIONS_AT_ONCE]))


def release_partitions(subset: str) -> dg.DynamicPartitionsDefinition:
    """Return the partitions of a subset's releases, one per release: `<subset>@<n>`."""
    return dg.DynamicPartitionsDefinition(name=f"releases/{subset}")


def release_key(subset: str, number: int) -> str:
    """Return the partition of a release."""
    return f"{subset}@{number}"


def range_tags(shards: Sequence[str]) -> dict[str, str]:
    """Return the tags of a run over a contiguous range of shards."""
    return {"dagster/asset_partition_range_start": shards[0], "dagster/asset_partition_range_end": shards[-1]}
