"""Tables that need not fit into memory: DuckDB with a bound on its memory, in a folder that lasts as long as the work.

What it sorts, groups and joins goes to that folder where the bound is reached.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa  # type: ignore[import-untyped]

from curation_resources.errors import UserError

MIB_A_THREAD = 512
"""Sorting wants as much for each of its threads: with less memory fewer of them work."""

LOCK = "lock"


class SpillError(UserError):
    """There is too little memory or disk; the message says what to do."""


class Spill:
    """SQL over tables on disk.

    Args:
        connection: of a database that nothing else uses.
        memory_mib: its bound.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, memory_mib: int) -> None:
        self._connection = connection
        self._memory_mib = memory_mib

    def run(self, statement: str, parameters: Sequence[object] = ()) -> None:
        """Execute a statement that gives nothing."""
        self._connection.execute(statement, list(parameters))

    def row(self, query: str, parameters: Sequence[object] = ()) -> tuple[Any, ...]:
        """The one row that a query gives."""
        found = self._connection.execute(query, list(parameters)).fetchone()
        assert found is not None
        return found

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """The few rows that a query gives."""
        return self._connection.execute(query).fetchall()

    def load(self, statement: str, frames: Iterable[pl.DataFrame]) -> None:
        """Execute a statement once for every frame, which it names `frame`: one of them at a time is in memory."""
        # Whoever makes the frames needs memory, too, and what only comes in needs little.
        self._connection.execute(f"set memory_limit = '{self._memory_mib // 2}MiB'")
        try:
            for frame in frames:
                self._connection.register("frame", frame)
                self._connection.execute(statement)
                self._connection.unregister("frame")
        finally:
            self._connection.execute(f"set memory_limit = '{self._memory_mib}MiB'")

    def stream(self, query: str) -> Iterator[pl.DataFrame]:
        """What a query gives, in its order, a piece at a time; tables may be read meanwhile, and not be changed."""
        with self._connection.cursor() as cursor:
            for batch in pa.RecordBatchReader.from_stream(cursor.sql(query)):
                piece = pl.from_arrow(batch)
                assert isinstance(piece, pl.DataFrame)
                yield piece


@contextmanager
def spilling(place: Path, memory_mib: int) -> Iterator[Spill]:
    """A database of one's own in a folder, which is gone when the block ends, whatever ends it.

    Args:
        place: folder for such folders; those of processes that were killed are removed from it.
        memory_mib: most that the database holds in memory.

    Raises:
        SpillError: memory or disk do not suffice.
    """
    place.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(place)
    with tempfile.TemporaryDirectory(dir=place) as name, (Path(name) / "new").open("w") as lock:
        # Named only when it is held: who clears away takes what is not held.
        fcntl.flock(lock, fcntl.LOCK_EX)
        (Path(name) / "new").rename(Path(name) / LOCK)
        options: dict[str, Any] = {
            "memory_limit": f"{memory_mib}MiB",
            "threads": max(1, min(os.cpu_count() or 1, memory_mib // MIB_A_THREAD)),
            "temp_directory": str(Path(name) / "temporary"),
        }
        try:
            with duckdb.connect(str(Path(name) / "database"), config=options) as connection:
                yield Spill(connection, memory_mib)
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            # After its first line DuckDB advises on settings that nobody here can make.
            reason = str(error).splitlines()[0]
            raise SpillError(
                f"{memory_mib} MiB of memory and the disk of {place} do not suffice ({reason}): set "
                "engine.selection_memory_mib higher, or make room on the disk"
            ) from error


def _clear_abandoned(place: Path) -> None:
    """Remove what processes left that were killed: their locks went with them."""
    for folder in place.iterdir():
        try:
            with (folder / LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        except (FileNotFoundError, BlockingIOError):
            # It goes away or begins at this moment, or its process is at work.
            continue
