"""`segmented_steps` of one shard."""

from __future__ import annotations

import polars as pl

from curation_assets import tables
from curation_assets.fingerprints import steps_fingerprint
from curation_assets.steps.segmentation import segment_frame
from curation_assets.workspace import Workspace


def segment_shard(workspace: Workspace, shard: str) -> pl.DataFrame:
    """Cut the shard's responses into steps and answers, and write the table."""
    source = f"{tables.raw_corpus_dir()}/{shard}.parquet"
    corpus = workspace.warehouse.read_table(source)
    corpus_fp = workspace.warehouse.table_metadata(source)["fingerprint"]
    steps = segment_frame(corpus, workspace.settings.corpus.segmentation)
    metadata = {"fingerprint": steps_fingerprint(workspace, corpus_fp)}
    workspace.warehouse.write_table(f"{tables.segmented_steps_dir()}/{shard}.parquet", steps, metadata)
    return steps
