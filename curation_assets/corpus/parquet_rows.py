"""Read the rows of a Parquet file with bounded memory, however far its pages expand.

The page headers of a row group are checked first (`parquet_pages`); then its rows are read a few hundred at a time, or
fewer. Each row's size is computed from Arrow's columns, and a row that is much too long is rejected before Python
values are created.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from numpy.typing import NDArray

from curation_assets.corpus.drafts import Refused
from curation_assets.corpus.fields import Row, to_json
from curation_assets.corpus.parquet_pages import plans
from curation_assets.corpus.raw_rows import ROW_BYTES, RawRow, RowBatch, Unpacked, file_problem, text_excerpt

PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError)
"""Exceptions that Arrow raises on damaged files."""

VALUE_BYTES = 8
"""Minimum size of any value: at least two characters of JSON, at up to four bytes each."""

SIGN_BYTES = 4

PYTHON_BYTES = 2**25
"""Maximum size of Arrow rows that are converted to Python values at a time, unless it is a single row."""

Ints = NDArray[np.int64]


def parquet_batches(stream: IO[bytes], limit: int) -> Iterator[RowBatch | RawRow]:
    """Yield the rows of a Parquet file, valid rows in batches; see `curation_assets.corpus.containers`.

    Args:
        stream: the file.
        limit: maximum characters of a row, as JSON.
    """
    size = stream.seek(0, io.SEEK_END)
    if size == 0:
        return
    unpacked = Unpacked(size)
    index = 0
    try:
        for batch in record_batches(stream, unpacked.allowed):
            sizes = row_sizes(batch)
            for start, end in _parts(sizes, SIGN_BYTES * limit):
                part = sizes[start:end]
                # No values are created for a row that is too long, so it does not count.
                unpacked.take(int(np.maximum(np.where(part > SIGN_BYTES * limit, 0, part), ROW_BYTES).sum()))
                rows = [_raw_row(row, index + at, limit) for at, row in enumerate(_values(batch, start, end, limit))]
                index += len(rows)
                yield from (row for row in rows if row.value is None)
                yield from _together([row for row in rows if row.value is not None])
    except Refused as refusal:
        if index == 0:
            yield file_problem(refusal.reason, refusal.detail)
        else:
            yield RawRow(index, None, refusal, str, ends_file=True)
    except PARQUET_ERRORS as error:
        why = str(error).split("\n", maxsplit=1)[0][:200]
        if index == 0:
            yield file_problem("not_parquet", f"the file is not readable Parquet ({why}). Write it again.")
        else:
            problem = Refused("damaged_parquet", f"the file is corrupt from row {index} on ({why}). Copy it again.")
            yield RawRow(index, None, problem, str, ends_file=True)


def record_batches(stream: IO[bytes], allowed: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet file as Arrow batches that fit the memory limits.

    Args:
        stream: the file.
        allowed: maximum number of bytes that all of its pages may expand to.

    Raises:
        Refused: unpacks_too_far, damaged_parquet.
        PARQUET_ERRORS: the file is damaged.
    """
    parquet = pq.ParquetFile(stream)
    for plan in plans(stream, parquet.schema, allowed):
        reader = parquet
        if plan.as_dictionaries:
            reader = pq.ParquetFile(stream, metadata=parquet.metadata, read_dictionary=list(plan.as_dictionaries))
        yield from reader.iter_batches(batch_size=plan.rows, row_groups=list(plan.groups))


def copy_first_parquet_rows(stream: IO[bytes], count: int, out: Path) -> int:
    """Write the first rows of a Parquet file to another one; return their number.

    Raises:
        Refused: unpacks_too_far, damaged_parquet.
        PARQUET_ERRORS: the file is damaged.
    """
    allowed = Unpacked(stream.seek(0, io.SEEK_END)).allowed
    parquet = pq.ParquetFile(stream)
    taken = 0
    with pq.ParquetWriter(out, parquet.schema_arrow) as writer:
        for batch in record_batches(stream, allowed):
            head = batch.slice(0, count - taken)
            allowed -= int(row_sizes(head).sum())
            if allowed < 0:
                raise Refused("unpacks_too_far", "the first rows unpack to far more than the file's size")
            # Restore the original type of columns that were read as dictionaries.
            writer.write_batch(head.cast(parquet.schema_arrow))
            taken += head.num_rows
            if taken >= count:
                break
    return taken


def row_sizes(batch: pa.RecordBatch) -> Ints:
    """Return the size of each row in bytes [rows]: the bytes of its texts, plus VALUE_BYTES per value.

    This is at most SIGN_BYTES times the characters of its JSON.
    """
    sizes = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        sizes += _sizes(column)
    return sizes


def _sizes(array: Any) -> Ints:
    """Return the size of each value of a column, including nested values."""
    kind, sizes = array.type, np.full(len(array), VALUE_BYTES, np.int64)
    if isinstance(array, pa.ExtensionArray):
        return _sizes(array.storage)
    if pa.types.is_dictionary(kind):
        known = _sizes(array.dictionary)
        return known[array.indices.fill_null(0).to_numpy()] if len(known) else sizes
    if pa.types.is_struct(kind):
        for number in range(kind.num_fields):
            sizes += _sizes(array.field(number))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        ends = np.append(0, np.cumsum(_sizes(array.values)))[array.offsets.to_numpy()]
        sizes += np.diff(ends)
    elif pa.types.is_fixed_size_list(kind):
        ends = np.append(0, np.cumsum(_sizes(array.values)))
        sizes += np.diff(ends[(np.arange(len(array) + 1) + array.offset) * kind.list_size])
    elif pa.types.is_fixed_size_binary(kind):
        sizes += kind.byte_width
    elif not pa.types.is_primitive(kind) and not pa.types.is_null(kind):
        sizes += pc.binary_length(array).fill_null(0).to_numpy().astype(np.int64)
    return sizes


def _parts(sizes: Ints, longest: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows of at most PYTHON_BYTES; rows longer than `longest` are in ranges of their own."""
    start = held = 0
    for at, size in enumerate(sizes.tolist()):
        if at > start and (held + size > PYTHON_BYTES or size > longest):
            yield start, at
            start, held = at, 0
        held += size
        if size > longest:
            yield at, at + 1
            start, held = at + 1, 0
    if start < len(sizes):
        yield start, len(sizes)


def _values(batch: pa.RecordBatch, start: int, end: int, limit: int) -> list[Row | Refused]:
    """Return a range of rows as Python values; a row that must be longer than `limit` characters is refused."""
    part = batch.slice(start, end - start)
    if end - start == 1 and row_sizes(part)[0] > SIGN_BYTES * limit:
        return [_too_long(limit)]
    part = _whole_microseconds(part)
    try:
        rows: list[Row | Refused] = part.to_pylist()
    except UnicodeDecodeError:
        # Some row has invalid text: convert them one by one.
        rows = []
        for position in range(part.num_rows):
            try:
                rows.extend(part.slice(position, 1).to_pylist())
            except UnicodeDecodeError as error:
                rows.append(
                    Refused("invalid_utf8", f"a text of the row is not UTF-8 ({error.reason}). Write it again.")
                )
    return rows


def _whole_microseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Convert timestamps to microseconds: Python has no finer ones, and would reject the whole file."""
    for position, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            times = batch.column(position).cast(pa.timestamp("us", field.type.tz), safe=False)
            batch = batch.set_column(position, field.name, times)
    return batch


def _raw_row(row: Row | Refused, index: int, limit: int) -> RawRow:
    if isinstance(row, Refused):
        return RawRow(index, None, row, str)
    try:
        encoded = to_json(row)
    except Refused as refusal:
        return RawRow(index, None, refusal, str)
    excerpt = text_excerpt(encoded)
    if len(encoded) > limit:
        return RawRow(index, None, _too_long(limit), excerpt)
    return RawRow(index, row, None, excerpt)


def _too_long(limit: int) -> Refused:
    return Refused(
        "row_too_long", f"the row is longer than {limit} characters. Raise corpus.max_row_bytes or split it."
    )


def _together(rows: list[RawRow]) -> Iterator[RowBatch]:
    if rows:
        values = [row.value for row in rows if row.value is not None]
        yield RowBatch([row.index for row in rows], values, lambda position: rows[position].excerpt())
