"""Samples that were taken out for good (`curate purge`): the list of them, and what it does to rows that are read.

The list is kept in the warehouse, so that a file that still holds such a sample, or holds it again, brings it no more:
its row is rejected with the reason `purged`, and nothing of its text is kept.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import polars as pl

from curation_assets import tables
from curation_assets.corpus.images import STORED
from curation_assets.corpus.reading import ShardRows
from resources.digests import now
from resources.errors import UserError
from resources.warehouse import Warehouse

PURGED = "purged"
DETAIL = "the sample was taken out with `curate purge`: take the row out of the file too"
SCHEMA_VERSION = 1


class PurgedListError(UserError):
    """The list of purged samples cannot be read."""


@dataclass(frozen=True)
class PurgedSample:
    """A sample that was taken out.

    Attributes:
        sample_id: its id; nothing else of it is kept.
        reason: what the person who did it said.
        when: the time (UTC), when it was first taken out.
        shards: shards and validation sets whose tables held it.
    """

    sample_id: str
    reason: str
    when: str
    shards: Sequence[str]


@dataclass(frozen=True)
class PurgedList:
    """All samples that were taken out, by sample_id."""

    samples: Mapping[str, PurgedSample]

    @classmethod
    def read(cls, warehouse: Warehouse) -> PurgedList:
        """The list as it is now; empty if nothing was ever taken out.

        Raises:
            PurgedListError: it is damaged, or was written by another version: no row may pass it unseen.
        """
        return cls._parse(warehouse, warehouse.read_text(tables.purged_path()))

    @classmethod
    def _parse(cls, warehouse: Warehouse, text: str | None) -> PurgedList:
        if text is None:
            return cls({})
        try:
            document = json.loads(text)
            if document["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema version {document['schema_version']}")
            return cls({entry["sample_id"]: PurgedSample(**entry) for entry in document["samples"]})
        except (ValueError, TypeError, KeyError) as error:
            raise PurgedListError(
                f"{warehouse.storage.shown(tables.purged_path())} cannot be read ({error!r}): restore it from a "
                "backup; without it samples that were purged would come back"
            ) from error

    def ids_of(self, shard: str) -> list[str]:
        """Those that the tables of a shard, or of a validation set, held: part of what its rows depend on."""
        return sorted(sample.sample_id for sample in self.samples.values() if shard in sample.shards)

    def ids(self) -> list[str]:
        """All of them."""
        return sorted(self.samples)


def add_purged(warehouse: Warehouse, sample_id: str, reason: str, shards: Collection[str]) -> PurgedList:
    """Put a sample on the list, or add shards to what is said of it; gives the list."""
    while True:
        before = warehouse.read_text(tables.purged_path())
        known = PurgedList._parse(warehouse, before).samples
        former = known.get(sample_id, PurgedSample(sample_id, reason, now(), ()))
        entry = replace(former, shards=sorted({*former.shards, *shards}))
        after = {**known, sample_id: entry}
        document = {"schema_version": SCHEMA_VERSION, "samples": [asdict(after[key]) for key in sorted(after)]}
        if warehouse.compare_and_swap(tables.purged_path(), before, json.dumps(document, indent=1)):
            return PurgedList(after)


def copy_purged(source: Warehouse, target: Warehouse) -> None:
    """Give another warehouse the same list: a look at rows in a temporary place shows none that was purged."""
    text = source.read_text(tables.purged_path())
    if text is not None:
        target.storage.write(tables.purged_path(), text.encode())


class Kept(NamedTuple):
    """Rows of both tables without purged samples, and how many candidate responses are no longer counted."""

    accepted: pl.DataFrame
    rejected: pl.DataFrame
    candidates_out: int


def without_purged(accepted: pl.DataFrame, rejected: pl.DataFrame, purged: Collection[str]) -> Kept:
    """Rows of `raw_corpus` and `rejected_rows` without these samples, each of which is rejected instead.

    A row of which no other candidate was accepted is rejected as a whole. Nothing of the text of a row that held a
    purged sample is kept: the excerpts of its other candidates, which begin with the same characters, are emptied.
    All candidates of a row must be given together.
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
    # Candidates are counted of rows that have an accepted one.
    candidates_out = len(single) + len(out.filter(of_emptied))
    return Kept(left, tables.REJECTED_ROWS.conform(pl.concat([former, refused])), candidates_out)


def rows_without_purged(rows: ShardRows, purged: Collection[str]) -> ShardRows:
    """A whole shard without these samples; see `without_purged`."""
    kept = without_purged(rows.accepted, rows.rejected, purged)
    candidates_in = rows.candidates_in - kept.candidates_out
    return replace(rows, accepted=kept.accepted, rejected=kept.rejected, candidates_in=candidates_in)


def kept_images(rows: pl.DataFrame) -> set[str]:
    """Names, below `images/`, of the images that rows of `raw_corpus` show and the warehouse keeps."""
    shown = rows["images"].explode().drop_nulls()
    return set(shown.filter(shown.str.starts_with(STORED)).str.strip_prefix(STORED).to_list())


def used_images(warehouse: Warehouse) -> set[str]:
    """Names of the images that any row of the corpus or of a validation set shows."""
    held_out = warehouse.names("validation")
    scans = [
        scan
        for folder, names in ((tables.raw_corpus_dir(), None), ("validation", held_out))
        if (scan := warehouse.scan(folder, names)) is not None
    ]
    return set().union(*(kept_images(scan.select("images").collect()) for scan in scans))


def drop_images(warehouse: Warehouse, names: Collection[str]) -> list[str]:
    """Remove those of the images that no row shows any more; gives their names."""
    unused = sorted(set(names) - used_images(warehouse)) if names else []
    for name in unused:
        warehouse.storage.remove(f"{tables.images_dir()}/{name}")
    return unused
