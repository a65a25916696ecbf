"""Read validation sets."""

from __future__ import annotations

import polars as pl

from curation_assets import tables
from curation_assets.config.corpus_settings import ValidationSet
from curation_assets.corpus.ingest import present_shards
from curation_assets.corpus.purging import rows_without_purged
from curation_assets.corpus.reading import ShardRows, read_shard
from curation_assets.workspace.held_out_files import ValidationSetError, validation_path, wanted_validation
from curation_assets.workspace.purge_list import PurgedList
from curation_assets.workspace.workspace import Workspace


def stored_validation(workspace: Workspace, name: str) -> str | None:
    """Return the fingerprint of a set as stored; None if it has not been read."""
    return workspace.warehouse.table_metadata(tables.validation_path(name)).get("fingerprint")


def read_validation(workspace: Workspace, validation: ValidationSet) -> ShardRows:
    """Read a set's file.

    Raises:
        ValidationSetError: the file is missing or holds no usable row.
    """
    path = validation_path(workspace, validation)
    corpus = workspace.settings.corpus.model_copy(update={"format": validation.format, "columns": validation.columns})
    shard = workspace.validation_shard(validation.name)
    read = read_shard(path, shard, path.name, corpus, keep_image=workspace.keep_image)
    rows = rows_without_purged(read, PurgedList.read(workspace.warehouse).ids())
    if rows.accepted.is_empty():
        reasons = ", ".join(sorted(set(rows.rejected["reason"].to_list()))) or rows.file_problem or "it is empty"
        raise ValidationSetError(
            f"validation set {validation.name}: {path} has no usable sample ({reasons}). Correct the file."
        )
    return rows


def write_validation(workspace: Workspace, validation: ValidationSet) -> ShardRows:
    """Read a set and write its table.

    Raises:
        ValidationSetError: see `read_validation`.
    """
    fingerprint = wanted_validation(workspace, validation)
    rows = read_validation(workspace, validation)
    workspace.warehouse.write_table(
        tables.validation_path(validation.name), rows.accepted, {"fingerprint": fingerprint}
    )
    return rows


def overlap_with_pool(workspace: Workspace, name: str) -> dict[str, int]:
    """Count the samples and prompts of a set that are also in present shards."""
    mine = workspace.warehouse.read_table(tables.validation_path(name))
    corpus = workspace.warehouse.scan(tables.raw_corpus_dir(), present_shards(workspace))
    if corpus is None:
        return {"samples_in_pool": 0, "prompts_in_pool": 0}
    found = {}
    for key, column in (("samples_in_pool", "sample_id"), ("prompts_in_pool", "prompt_id")):
        held = corpus.select(column).unique().join(mine.lazy().select(column), on=column, how="semi")
        found[key] = int(held.select(pl.len()).collect().item())
    return found
