"""Measured rows: append-only parts named by their content, with an index of the samples that they contain."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import polars as pl

from curation_resources.storage.digests import bytes_digest
from curation_resources.storage.part_index import PartIndex
from curation_resources.storage.warehouse import TABLE, Warehouse, parquet_bytes

PREFIX = "part-"
LONGEST_CHANGE = 60.0
"""Seconds for which a reader retries while parts are removed one after another."""

Found = TypeVar("Found")
logger = logging.getLogger("curation")


class Measurements:
    """The rows of one signal under one fingerprint, in append-only parts, keyed by sample_id.

    A part is a Parquet file named by the hash of its bytes; its `sample_id` column is its index. Writers only add
    parts, or
    merge several into one, so they cannot disturb one another; if two measure the same sample, the row in the part that
    sorts first counts. A part whose bytes do not match its name is set aside, and its samples count as not measured.
    """

    def __init__(self, warehouse: Warehouse, folder: str) -> None:
        self._warehouse = warehouse
        self.folder = folder
        self._index = PartIndex()
        self._looked = False

    def append(self, frame: pl.DataFrame) -> str:
        """Commit rows as one part; return the part's name."""
        data = parquet_bytes(frame, {})
        name = PREFIX + bytes_digest(data)
        self._warehouse.write_named(self.path(name), data, name.removeprefix(PREFIX))
        if self._looked and name not in self._index.parts:
            self._index.add({name: frame["sample_id"]})
        return name

    def names(self) -> set[str]:
        """Return the names of all intact parts. Parts never change, so each is read once."""
        self._refresh()
        return self._index.parts

    def held(self, sample_ids: pl.Series) -> pl.DataFrame:
        """Return the measured samples among these, each with the part that counts: sample_id and part.

        Parts are listed again only if a sample is in none of the known ones, because a listing grows long over time.
        """
        found = self._found(sample_ids)
        return found.sort("part").unique("sample_id", keep="first", maintain_order=True)

    def _found(self, sample_ids: pl.Series) -> pl.DataFrame:
        """Return every part that contains one of these samples."""
        found = self._index.find(sample_ids)
        if not self._looked or found["sample_id"].n_unique() < sample_ids.n_unique():
            self._refresh()
            found = self._index.find(sample_ids)
        return found

    def parts_of(self, sample_ids: pl.Series) -> list[str]:
        """Return the names of the parts that contain these samples, sorted."""
        return self.held(sample_ids)["part"].unique().sort().to_list()

    def missing(self, sample_ids: pl.Series) -> set[str]:
        """Return the sample_ids that have not been measured, after a refresh of the index."""
        self._refresh()
        return set(sample_ids.unique().to_list()) - set(self._index.find(sample_ids)["sample_id"].to_list())

    def rows(self, sample_ids: pl.Series) -> pl.DataFrame | None:
        """Return the rows of these samples, in order of sample_id; None if nothing at all has been measured."""
        return self._with_retry(lambda: self._rows(sample_ids))

    def compact(self, sample_ids: pl.Series) -> None:
        """Merge the parts that contain only these samples; one visit to a shard leaves many.

        The new part exists before the others are removed; concurrent readers retry.
        """
        own = self._found(sample_ids).group_by("part").agg(pl.col("sample_id").n_unique())
        parts = sorted(part for part, count in own.iter_rows() if count == self._index.rows_of(part))
        if len(parts) < 2:
            return
        try:
            rows = pl.concat(self._warehouse.read_table(self.path(name)) for name in parts)
        except FileNotFoundError:  # another process is compacting
            self._refresh()
            return
        whole = self.append(rows.unique("sample_id", keep="first", maintain_order=True).sort("sample_id"))
        for name in parts:
            if name != whole:
                self._warehouse.storage.remove(self.path(name))
                self._index.drop([name])

    def path(self, name: str) -> str:
        """Return a part's path."""
        return f"{self.folder}/{name}{TABLE}"

    def _rows(self, sample_ids: pl.Series) -> pl.DataFrame | None:
        wanted = self.held(sample_ids)
        parts = wanted["part"].unique().sort().to_list() or sorted(self._index.parts)[:1]
        if not parts:
            return None
        # Scan all of them, so that a part removed meanwhile raises an error instead of being skipped.
        lazy = self._warehouse.scan_all([self.path(name) for name in parts])
        return (
            lazy.join(wanted.select("sample_id").lazy(), on="sample_id", how="semi", maintain_order="left")
            .collect()
            .unique("sample_id", keep="first", maintain_order=True)
            .sort("sample_id")
        )

    def _refresh(self) -> None:
        """Update the index with added and removed parts."""
        self._looked = True
        names = set(self._warehouse.names(self.folder))
        if names == self._index.parts:
            return None
        # A listing that overlaps with a merge may contain neither the old parts nor the new one. List again until no
        # part has
        # disappeared; parts that were only added are no reason to list again, since others may add parts all the time.
        while not names <= (again := set(self._warehouse.names(self.folder))):
            names = again
        names = again
        new: dict[str, pl.Series] = {}
        for name in self._whole(sorted(names - self._index.parts)):
            try:
                new[name] = self._warehouse.read_columns(self.path(name), "sample_id")["sample_id"]
            except FileNotFoundError:  # another process merged it with others
                return self._refresh()
        self._index.drop(self._index.parts - names)
        self._index.add(new)
        return None

    def _whole(self, names: list[str]) -> list[str]:
        """Return the intact parts; damaged ones are set aside."""
        contents = {self.path(name): name.removeprefix(PREFIX) for name in names}
        damaged = self._warehouse.damaged(contents)
        for path in damaged:
            aside = self._warehouse.set_aside(path)
            shown = self._warehouse.storage.shown
            logger.warning(
                "%s is damaged; it was moved to %s, and its samples will be measured again",
                shown(path),
                shown(aside),
            )
        return [name for name in names if self.path(name) not in damaged]

    def _with_retry(self, read: Callable[[], Found]) -> Found:
        """Read, and retry if parts were removed meanwhile."""
        begun = time.monotonic()
        while True:
            before = self._index.parts
            try:
                return read()
            except (FileNotFoundError, pl.exceptions.ComputeError):
                self._refresh()
                if self._index.parts == before or time.monotonic() - begun > LONGEST_CHANGE:
                    raise
