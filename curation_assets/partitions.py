"""The dynamic partition sets: shards, and the releases of each subset."""

import dagster as dg

SHARDS = dg.DynamicPartitionsDefinition(name="shards")
"""One partition a landing file; see `resources.landing.partition_key`."""


def release_partitions(subset: str) -> dg.DynamicPartitionsDefinition:
    """One partition a release of the subset, `<subset>@<n>`."""
    return dg.DynamicPartitionsDefinition(name=f"releases/{subset}")


def release_key(subset: str, number: int) -> str:
    """The partition of a release."""
    return f"{subset}@{number}"
