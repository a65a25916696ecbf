"""`segmented_steps` of one shard."""

from __future__ import annotations

import polars as pl

from curation_assets import tables
from curation_assets.steps.segmentation import segment_frame
from curation_assets.workspace.fingerprints import steps_fingerprint
from curation_assets.workspace.workspace import Workspace


def segment_shard(workspace: Workspace, shard: str) -> pl.DataFrame:
    """Cut the shard's responses into steps and answers, and write the table.

    A shard that has never been read, because its file was gone first, gives an empty frame and no table.
    """
    source = f"{tables.raw_corpus_dir()}/{shard}.parquet"
    metadata = workspace.warehouse.table_metadata(source)
    if not metadata:
        return tables.SEGMENTED_STEPS.empty()
    steps = segment_frame(workspace.warehouse.read_table(source), workspace.settings.corpus.segmentation)
    facts = {"fingerprint": steps_fingerprint(workspace, metadata["fingerprint"]), "images": metadata["images"]}
    workspace.warehouse.write_table(f"{tables.segmented_steps_dir()}/{shard}.parquet", steps, facts)
    return steps
