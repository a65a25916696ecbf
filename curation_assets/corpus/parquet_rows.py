"""Read the rows of a Parquet file with bounded memory, however far its pages expand.

The page headers of a row group are checked first (`parquet_pages`); then its rows are read a few hundred at a time, or
fewer. Each row's size is computed from Arrow's columns, and a row that is much too long is rejected before Python
values are created.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from numpy.typing import NDArray

from curation_assets.corpus.drafts import Refused
from curation_assets.corpus.fields import Exact, Row, to_json
from curation_assets.corpus.parquet_pages import plans
from curation_assets.corpus.raw_rows import (
    ROW_BYTES,
    RawRow,
    RowBatch,
    Unpacked,
    file_problem,
    is_trouble,
    text_excerpt,
)

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
        for batch in map(plain_types, record_batches(stream, unpacked.allowed)):
            sizes = row_sizes(batch)
            not_finite = sum(map(_not_finite, batch.columns))
            for start, end in _parts(sizes, SIGN_BYTES * limit):
                part = sizes[start:end]
                # No values are created for a row that is too long, so it does not count.
                unpacked.take(int(np.maximum(np.where(part > SIGN_BYTES * limit, 0, part), ROW_BYTES).sum()))
                rows = [_raw_row(row, index + at, limit) for at, row in enumerate(_values(batch, start, end, limit))]
                index += len(rows)
                yield from (row for row in rows if row.value is None)
                for together in _together([row for row in rows if row.value is not None]):
                    yield replace(together, not_finite=not_finite)
                    not_finite = 0
    except Refused as refusal:
        if index == 0:
            yield file_problem(refusal.reason, refusal.detail)
        else:
            yield RawRow(index, None, refusal, str, ends_file=True)
    except PARQUET_ERRORS as error:
        if is_trouble(error):
            raise
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
    names = parquet.schema_arrow.names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Refused(
            "duplicate_columns",
            f"several columns have the name {', '.join(map(repr, twice))[:200]}. Rename or remove all but one of each.",
        )
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
            allowed -= int(row_sizes(plain_types(head)).sum())
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
    elif pa.types.is_fixed_size_binary(kind) or pa.types.is_decimal(kind):
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
    try:
        return list(_rows(part))
    except UnicodeDecodeError:
        # Some row has invalid text: convert them one by one.
        rows: list[Row | Refused] = []
        for position in range(part.num_rows):
            try:
                rows.extend(_rows(part.slice(position, 1)))
            except UnicodeDecodeError as error:
                rows.append(
                    Refused("invalid_utf8", f"a text of the row is not UTF-8 ({error.reason}). Write it again.")
                )
    return rows


def _rows(batch: pa.RecordBatch) -> Iterator[Row]:
    """Yield rows as Python values; decimals keep their digits."""
    names, columns = batch.schema.names, [_column(column) for column in batch.columns]
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


def _column(array: Any) -> list[Any]:
    if pa.types.is_decimal(array.type):
        scale = array.type.scale
        read = Exact.integer if scale <= 0 else Exact.decimal
        return [None if value is None else read(format(value, "f")) for value in array.to_pylist()]
    found: list[Any] = array.to_pylist()
    return found


def plain_types(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Convert columns to types that Python has values for; see `_plain`.

    A column that nobody uses must not make a file unreadable, so one that cannot be converted becomes text value by
    value, and a value that cannot becomes a text that says so.
    """
    columns, names = [], batch.schema.names
    for name, column in zip(names, batch.columns, strict=True):
        converted = column
        try:
            wanted = _plain(column.type)
            if wanted != column.type:
                converted = column.cast(wanted, safe=False)
                try:
                    converted.validate()
                except pa.ArrowInvalid:
                    # Arrow 26 gives a list view that it casts one offset too few.
                    converted = pa.array(column.to_pylist(), wanted)
            if _beyond_python(converted):
                converted = _as_text(converted)
        except (pa.ArrowException, ArithmeticError, LookupError, TypeError, ValueError) as error:
            said = str(error).split("\n", maxsplit=1)[0][:100]
            problem = f"column {name} of type {column.type} cannot be read: {said}"
            converted = pa.array([_value_text(value, problem) for value in column], pa.string())
        columns.append(converted)
    return pa.RecordBatch.from_arrays(columns, names=names)


def _value_text(value: Any, problem: str) -> str | None:
    """Return one value of a column that cannot be converted as a whole, as JSON, or the problem."""
    try:
        found = value.as_py()
        return None if found is None else to_json(found)
    except (pa.ArrowException, ArithmeticError, LookupError, TypeError, ValueError):
        return problem


def _plain(kind: Any) -> Any:
    """Return the type to read a type as.

    Views become plain texts and lists, times and durations whole microseconds (Python has no finer ones), decimals
    inside lists and structs text, and timestamps of a time zone that is not known here UTC.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return kind
    return next((wanted(kind) for holds, wanted in _PLAIN if holds(kind)), kind)


def _plain_timestamp(kind: Any) -> Any:
    zone = kind.tz if kind.tz is None or _is_zone(kind.tz) else "UTC"
    return pa.timestamp("us" if kind.unit == "ns" else kind.unit, zone)


def _plain_field(field: Any) -> Any:
    inner = pa.string() if pa.types.is_decimal(field.type) else _plain(field.type)
    return field.with_type(inner)


@cache
def _is_zone(name: str) -> bool:
    """Return whether Arrow can give timestamps of a time zone to Python."""
    try:
        pa.scalar(0, pa.timestamp("s", name)).as_py()
    except (KeyError, ValueError, pa.ArrowException):
        return False
    return True


_PLAIN: tuple[tuple[Callable[[Any], bool], Callable[[Any], Any]], ...] = (
    (pa.types.is_string_view, lambda _: pa.large_string()),
    (pa.types.is_binary_view, lambda _: pa.large_binary()),
    (pa.types.is_timestamp, _plain_timestamp),
    (pa.types.is_time64, lambda _: pa.time64("us")),
    (pa.types.is_duration, lambda kind: pa.duration("us") if kind.unit == "ns" else kind),
    (pa.types.is_struct, lambda kind: pa.struct([_plain_field(kind.field(at)) for at in range(kind.num_fields)])),
    (pa.types.is_list, lambda kind: pa.list_(_plain_field(kind.value_field))),
    (pa.types.is_list_view, lambda kind: pa.list_(_plain_field(kind.value_field))),
    (pa.types.is_large_list, lambda kind: pa.large_list(_plain_field(kind.value_field))),
    (pa.types.is_large_list_view, lambda kind: pa.large_list(_plain_field(kind.value_field))),
    (pa.types.is_fixed_size_list, lambda kind: pa.list_(_plain_field(kind.value_field), kind.list_size)),
    (pa.types.is_map, lambda kind: pa.map_(_plain_field(kind.key_field), _plain_field(kind.item_field))),
)


def _not_finite(array: Any) -> int:
    """Return how many values of a column, or inside them, are NaN or Infinity, which JSON does not have."""
    kind = array.type
    if pa.types.is_floating(kind):
        wide = array.cast(pa.float32()) if pa.types.is_float16(kind) else array
        return int(len(array) - array.null_count - (pc.sum(pc.is_finite(wide)).as_py() or 0))
    if isinstance(array, pa.ExtensionArray):
        return _not_finite(array.storage)
    if pa.types.is_struct(kind):
        return sum(map(_not_finite, array.flatten()))
    if pa.types.is_map(kind):
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        return _not_finite(array.items.slice(first, last - first))
    # Unlike `values`, `flatten` leaves out what a slice or a null hides.
    return _not_finite(array.flatten()) if _is_list(kind) else 0


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _beyond_python(array: Any) -> bool:
    """Return whether a column, or a value inside it, is a date or time that Python has none for."""
    kind = array.type
    if inner := _inner(array):
        return any(map(_beyond_python, inner))
    if pa.types.is_duration(kind):
        counts = pc.min_max(array.cast(pa.int64())).as_py()
        longest = timedelta.max // timedelta(**{_UNITS[kind.unit]: 1})
        return bool(max(abs(count or 0) for count in counts.values()) > longest)
    if not (pa.types.is_date(kind) or pa.types.is_timestamp(kind)):
        return False
    extremes = pc.min_max(array)
    try:
        extremes.as_py()
    except (OverflowError, ValueError):
        return True
    return False


_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}


def _inner(array: Any) -> list[Any]:
    """Return the arrays that a column of a nested type consists of."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return [array.storage]
    if pa.types.is_dictionary(kind):
        return [array.dictionary]
    if pa.types.is_struct(kind):
        return [array.field(number) for number in range(kind.num_fields)]
    if pa.types.is_map(kind):
        return [array.keys, array.items]
    return [array.values] if _is_list(kind) else []


def _as_text(array: Any) -> Any:
    """Return dates, times and durations as text, also inside structs.

    Raises:
        ArrowNotImplementedError: they are inside a list or a map.
    """
    kind = array.type
    if pa.types.is_struct(kind):
        inner = [array.field(number) for number in range(kind.num_fields)]
        inner = [_as_text(one) if _beyond_python(one) else one for one in inner]
        names = [kind.field(number).name for number in range(kind.num_fields)]
        return pa.StructArray.from_arrays(inner, names=names, mask=array.is_null())
    if pa.types.is_duration(kind):
        return array.cast(pa.int64()).cast(pa.string())
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return array.cast(pa.string())
    raise pa.ArrowNotImplementedError(f"dates beyond the year 9999 inside {kind}")


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
