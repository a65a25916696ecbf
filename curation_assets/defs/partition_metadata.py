"""Attach metadata to all partitions of a run at once: the only module that uses a private API of Dagster.

Dagster's public API handles one partition at a time, and each call queries the event log for all of them.
tests/pipeline/test_partition_metadata.py fails if an upgrade of Dagster changes what this relies on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._core.execution.context.metadata_logging import AssetMetadataHandle, OutputMetadataAccumulator


def add_partition_metadata(
    context: dg.AssetExecutionContext, asset_key: dg.AssetKey, metadata: Mapping[str, Mapping[str, Any]]
) -> None:
    """Attach materialization metadata to every partition of a run: `add_asset_metadata` for all of them at once.

    Args:
        context: the context of the running asset.
        asset_key: the key of the asset, or of one of several.
        metadata: metadata by partition; the run materializes all of them.
    """
    step = context.get_step_execution_context()
    per_partition = {
        AssetMetadataHandle(asset_key=asset_key, partition_key=partition): dict(values)
        for partition, values in metadata.items()
    }
    both = dict(step._metadata_accumulator.per_output_metadata)
    both.update(per_partition)
    step._metadata_accumulator = OutputMetadataAccumulator(per_output_metadata=both)
