"""Write a Parquet file in chunks, so that a table need not fit into memory."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import polars as pl
import pyarrow.parquet as pq  # type: ignore[import-untyped]


class TableWriter:
    """Writes a Parquet file in chunks, each while the next one is prepared.

    Attributes:
        metadata: footer metadata; set it before the block ends.
    """

    def __init__(self, file: Path, schema: Mapping[str, Any]) -> None:
        self.metadata: dict[str, str] = {}
        arrow = pl.DataFrame(schema=dict(schema)).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
        self._writer = pq.ParquetWriter(file, arrow, compression="zstd", use_dictionary=False)
        self._schema = arrow
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def add(self, frame: pl.DataFrame) -> None:
        """Add the next rows. Waits for the previous rows to be written, and raises their errors."""
        if self._last is not None:
            self._last.result()
        self._last = self._thread.submit(self._write, frame)

    def _write(self, frame: pl.DataFrame) -> None:
        if len(frame):
            self._writer.write_table(frame.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(self._schema))

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish the file, unless the block raised an error."""
        with self._thread:
            try:
                if kind is None and self._last is not None:
                    self._last.result()
                self._writer.add_key_value_metadata(self.metadata)
            finally:
                self._thread.shutdown()
                self._writer.close()
