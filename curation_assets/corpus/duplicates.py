"""Resolve exact duplicates: choose the row that represents a sample that arrived more than once.

`raw_corpus` keeps every arrival, so removing a shard loses nothing that another shard also holds. The pool, from which
subsets are selected, has each sample once.
"""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

ARRIVAL = ("shard", "row", "candidate")


class Pool(NamedTuple):
    """The rows that represent their samples, and the number of duplicates."""

    rows: pl.DataFrame
    duplicates: int


def resolve_duplicates(frame: pl.LazyFrame | pl.DataFrame) -> Pool:
    """Keep one row per sample_id: the lowest shard, then row, then candidate.

    `frame` has sample_id, shard, row and candidate, and any other columns, which are kept.
    """
    rows = frame.lazy().collect()
    if all_distinct(rows["sample_id"]):
        return Pool(rows, 0)
    rows = rows.sort(ARRIVAL)
    kept = rows.unique("sample_id", keep="first", maintain_order=True)
    return Pool(kept, rows.height - kept.height)


def all_distinct(sample_ids: pl.Series) -> bool:
    """Return whether all sample_ids are distinct, much faster than grouping texts."""
    # Distinct hashes imply distinct texts; if hashes collide, compare the texts.
    return sample_ids.hash().n_unique() == len(sample_ids) or sample_ids.n_unique() == len(sample_ids)
