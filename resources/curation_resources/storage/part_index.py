"""An index from samples to the parts that contain them, for many more samples than a query has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import polars as pl

CHUNKS = 256
"""Number of memory blocks after which they are merged."""


class PartIndex:
    """Maps samples to the parts that contain them, in 20 bytes per sample, whatever the length of its id.

    Only two 64-bit hashes of each id are kept. A query is one pass over the first of them, without sorting.
    """

    def __init__(self) -> None:
        self._held = pl.DataFrame(schema={"first": pl.UInt64, "second": pl.UInt64, "part": pl.UInt32})
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._rows: dict[str, int] = {}

    def __len__(self) -> int:
        """Return the number of rows of all parts together."""
        return sum(self._rows.values())

    @property
    def parts(self) -> set[str]:
        """The names of the parts."""
        return set(self._numbers)

    def rows_of(self, part: str) -> int:
        """Return the number of samples in a part."""
        return self._rows[part]

    def add(self, parts: Mapping[str, pl.Series]) -> None:
        """Add parts, by name, with their sample_ids."""
        frames = [self._held]
        for name, sample_ids in parts.items():
            number = len(self._names)
            self._names.append(name)
            self._numbers[name], self._rows[name] = number, len(sample_ids)
            frames.append(_hashed(sample_ids).with_columns(part=pl.lit(number, dtype=pl.UInt32)))
        self._held = pl.concat(frames)
        if self._held.n_chunks() > CHUNKS:
            self._held = self._held.rechunk()

    def drop(self, parts: Iterable[str]) -> None:
        """Remove parts."""
        for name in parts:
            del self._numbers[name], self._rows[name]
        # Rows are removed once they are the majority: moving the others costs more than skipping over them.
        if 2 * len(self) < len(self._held):
            living = pl.Series(list(self._numbers.values()), dtype=pl.UInt32)
            self._held = self._held.filter(pl.col("part").is_in(living.implode()))

    def find(self, sample_ids: pl.Series) -> pl.DataFrame:
        """Return every part that contains one of these samples, as one row of sample_id and part per pair."""
        wanted = sample_ids.unique().cast(pl.String)
        asked = _hashed(wanted).with_columns(sample_id=wanted)
        near = self._held.filter(pl.col("first").is_in(asked["first"].implode()))
        found = near.join(asked, on=["first", "second"], how="inner")
        names = {number: name for name, number in self._numbers.items() if number in set(found["part"].unique())}
        return found.filter(pl.col("part").is_in(list(names))).select(
            "sample_id", part=pl.col("part").replace_strict(names, return_dtype=pl.String)
        )


def _hashed(sample_ids: pl.Series) -> pl.DataFrame:
    return pl.DataFrame({"first": sample_ids.hash(seed=0), "second": sample_ids.hash(seed=1)})
