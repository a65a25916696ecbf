"""Remove purged samples from rows that are read, and the images that only they used."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import polars as pl

from curation_assets import tables
from curation_assets.corpus.images import STORED
from curation_assets.corpus.reading import ShardRows
from curation_resources.storage.warehouse import Warehouse

PURGED = "purged"
DETAIL = "the sample was removed with `curate purge`. Remove the row from the file too."


class Kept(NamedTuple):
    """Rows of both tables without purged samples, and the number of candidate responses no longer counted."""

    accepted: pl.DataFrame
    rejected: pl.DataFrame
    candidates_out: int


def without_purged(accepted: pl.DataFrame, rejected: pl.DataFrame, purged: Collection[str]) -> Kept:
    """Return rows of `raw_corpus` and `rejected_rows` without these samples, each of which is rejected instead.

    A row without other accepted candidates is rejected as a whole. No text of a row that held a purged sample is kept:
    the excerpts of its other candidates, which begin with the same characters, are emptied. All candidates of a row
    must be passed together.
    """
    out = accepted.filter(pl.col("sample_id").is_in(list(purged)))
    if out.is_empty():
        return Kept(accepted, rejected, 0)
    left = accepted.filter(~pl.col("sample_id").is_in(list(purged)))
    touched = out["row"].unique().to_list()
    emptied = sorted(set(touched) - set(left["row"].to_list()))
    of_emptied = pl.col("row").is_in(emptied)
    single = rejected.filter(of_emptied & (pl.col("candidate") >= 0))
    former = rejected.filter(~of_emptied).with_columns(
        excerpt=pl.when(pl.col("row").is_in(touched)).then(pl.lit("")).otherwise("excerpt")
    )
    refused = (
        out.select("shard", "row", candidate=pl.when(of_emptied).then(-1).otherwise("candidate").cast(pl.Int32))
        .unique()
        .with_columns(reason=pl.lit(PURGED), detail=pl.lit(DETAIL), excerpt=pl.lit(""))
    )
    # Candidates are counted only for rows with an accepted one.
    candidates_out = len(single) + len(out.filter(of_emptied))
    return Kept(left, tables.REJECTED_ROWS.conform(pl.concat([former, refused])), candidates_out)


def rows_without_purged(rows: ShardRows, purged: Collection[str]) -> ShardRows:
    """Remove these samples from a whole shard; see `without_purged`."""
    kept = without_purged(rows.accepted, rows.rejected, purged)
    candidates_in = rows.candidates_in - kept.candidates_out
    return replace(rows, accepted=kept.accepted, rejected=kept.rejected, candidates_in=candidates_in)


def kept_images(rows: pl.DataFrame) -> set[str]:
    """Return the names, below `images/`, of images in rows of `raw_corpus` that the warehouse stores."""
    shown = rows["images"].explode().drop_nulls()
    return set(shown.filter(shown.str.starts_with(STORED)).str.strip_prefix(STORED).to_list())


def used_images(warehouse: Warehouse) -> set[str]:
    """Return the names of the images used by any row of the corpus or of a validation set."""
    held_out = warehouse.names("validation")
    scans = [
        scan
        for folder, names in ((tables.raw_corpus_dir(), None), ("validation", held_out))
        if (scan := warehouse.scan(folder, names)) is not None
    ]
    return set().union(*(kept_images(scan.select("images").collect()) for scan in scans))


def drop_images(warehouse: Warehouse, names: Collection[str]) -> list[str]:
    """Remove the given images unless a row still uses them; return the names of those removed."""
    unused = sorted(set(names) - used_images(warehouse)) if names else []
    for name in unused:
        warehouse.storage.remove(f"{tables.images_dir()}/{name}")
    return unused
