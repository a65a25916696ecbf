"""The dynamic partition sets: shards, and the releases of each subset; and how runs over them are tagged."""

from collections.abc import Sequence

import dagster as dg

STAGE_TAG = "curation/stage"
"""Of a run that a sensor or `curate run` asked for: what it is about."""

SHARDS = dg.DynamicPartitionsDefinition(name="shards")
"""One partition a landing file; see `curation_resources.storage.landing.partition_key`."""


def release_partitions(subset: str) -> dg.DynamicPartitionsDefinition:
    """One partition a release of the subset, `<subset>@<n>`."""
    return dg.DynamicPartitionsDefinition(name=f"releases/{subset}")


def release_key(subset: str, number: int) -> str:
    """The partition of a release."""
    return f"{subset}@{number}"


def range_tags(shards: Sequence[str]) -> dict[str, str]:
    """Tags of a run over a contiguous range of shards."""
    return {"dagster/asset_partition_range_start": shards[0], "dagster/asset_partition_range_end": shards[-1]}
