"""Tables that need not fit into memory: DuckDB with a memory limit, and a folder that exists only during the work.

Tables, sorts, groups and joins spill to that folder when they reach the limit.
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
"""Memory for sorting per thread; a lower limit means fewer threads."""

LOCK = "lock"


class SpillError(UserError):
    """There is too little memory or disk space; the message states the fix."""


class Spill:
    """SQL over tables in memory and, beyond the limit, on disk.

    Args:
        connection: connection to a database of its own.
        memory_mib: memory limit.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, memory_mib: int) -> None:
        self._connection = connection
        self._memory_mib = memory_mib

    def run(self, statement: str, parameters: Sequence[object] = ()) -> None:
        """Execute a statement without a result."""
        self._connection.execute(statement, list(parameters))

    def row(self, query: str, parameters: Sequence[object] = ()) -> tuple[Any, ...]:
        """Return the single row of a query."""
        found = self._connection.execute(query, list(parameters)).fetchone()
        assert found is not None
        return found

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return all rows of a query with a small result."""
        return self._connection.execute(query).fetchall()

    def frame(self, query: str) -> pl.DataFrame:
        """Return all rows of a query, in memory."""
        # DuckDB allows no other work on a connection whose last result was not read to its end.
        with self._connection.cursor() as cursor:
            return pl.DataFrame(cursor.sql(query).pl())

    def load(self, statement: str, frames: Iterable[pl.DataFrame], *, in_order: bool = False) -> None:
        """Execute a statement once per frame, which it refers to as `frame`; one frame at a time is in memory.

        Args:
            statement: inserts the frame's rows into a table.
            frames: the frames.
            in_order: whether the table keeps the order of the rows, which takes longer.
        """
        # The producer of the frames needs memory, too, and loading needs little.
        self._connection.execute(f"set memory_limit = '{self._memory_mib // 2}MiB'")
        self._connection.execute(f"set preserve_insertion_order = {in_order}")
        try:
            for frame in frames:
                self._connection.register("frame", frame)
                self._connection.execute(statement)
                self._connection.unregister("frame")
        finally:
            self._connection.execute("set preserve_insertion_order = true")
            self._connection.execute(f"set memory_limit = '{self._memory_mib}MiB'")

    def stream(self, query: str) -> Iterator[pl.DataFrame]:
        """Yield a query's result in order, in batches; tables may be read meanwhile, but not changed."""
        with self._connection.cursor() as cursor:
            for batch in pa.RecordBatchReader.from_stream(cursor.sql(query)):
                piece = pl.from_arrow(batch)
                assert isinstance(piece, pl.DataFrame)
                yield piece


@contextmanager
def spilling(place: Path, memory_mib: int) -> Iterator[Spill]:
    """Open a private database in a temporary folder, which is removed when the block ends, even by an error.

    Args:
        place: parent of the temporary folders; those left by killed processes are removed. Where it cannot be written,
            the system's folder for temporary files is used.
        memory_mib: memory limit of the database.

    Raises:
        SpillError: memory or disk space were not enough, or the disk failed.
    """
    place = _writable(place)
    _clear_abandoned(place)
    with tempfile.TemporaryDirectory(dir=place) as name, (Path(name) / "new").open("w") as lock:
        # Renamed only once it is locked, because cleaners remove folders whose lock is free.
        fcntl.flock(lock, fcntl.LOCK_EX)
        (Path(name) / "new").rename(Path(name) / LOCK)
        options: dict[str, Any] = {
            "memory_limit": f"{memory_mib}MiB",
            "threads": max(1, min(os.cpu_count() or 1, memory_mib // MIB_A_THREAD)),
            "temp_directory": str(Path(name) / "temporary"),
        }
        try:
            with duckdb.connect(":memory:", config=options) as connection:
                yield Spill(connection, memory_mib)
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            # After its first line DuckDB recommends settings that users of this project cannot change.
            reason = str(error).splitlines()[0]
            raise SpillError(
                f"selecting failed with {memory_mib} MiB of memory and the disk of {place}: {reason}. Raise "
                "engine.selection_memory_mib, free disk space, or set XDG_CACHE_HOME to a folder on another disk."
            ) from error


def _writable(place: Path) -> Path:
    """Return the folder, made if necessary, or one for temporary files if it cannot be written."""
    own = f"curation-spill-{os.getuid()}"
    for folder in (place, Path(tempfile.gettempdir()) / own):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error
            continue
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        reason = PermissionError(f"{folder} cannot be written")
    raise SpillError(f"no folder for temporary files ({reason}). Set XDG_CACHE_HOME to a folder that can be written.")


def _clear_abandoned(place: Path) -> None:
    """Remove the folders of killed processes, whose locks are free."""
    for folder in filter(Path.is_dir, place.iterdir()):
        try:
            with (folder / LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        except OSError:
            # The folder is just being created or removed, its process is running, or it belongs to another user.
            continue
