"""Determine from page headers how many bytes a Parquet file's pages unpack to, before anything is unpacked.

Arrow unpacks a whole page into as many bytes as its header says, and the footer may say something else. So the headers
are read here, each a structure in Thrift's compact protocol, and a row group whose pages unpack to too many bytes is
refused, while the rows before it are kept. Two encodings represent a value by few bytes or none: a dictionary, and
DELTA_BYTE_ARRAY, where a value repeats the beginning of the previous one. The size that they may reach limits how many
rows are read together.

A memory limit on the reading process alone would lose the rows before such a group, and the reason: the process dies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa  # type: ignore[import-untyped]

from curation_assets.corpus.drafts import Refused
from curation_assets.corpus.parquet_thrift import Thrift, read_footer, whole

PAGE_BYTES = 2**26
"""Bytes that any page may unpack to."""

PAGE_RATIO = 100
"""A larger page may unpack to at most this many times its size."""

VALUES = 2**24
"""Values, of all rows of a group together, that need not be backed by bytes; each takes a few bytes when read."""

BATCH_BYTES = 2**26
"""Bytes of rows that are read together, unless it is one row."""

TOGETHER_BYTES = 2**22
"""Bytes that row groups read together unpack to: each call of Arrow takes as long as some hundred rows."""

BATCH_ROWS = 256

SMALL_DICTIONARY = 2**16
"""Bytes of a dictionary whose entries need not be looked at: each may be as long as all of it."""

_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_CODECS = ("zstd", "snappy", "gzip", "brotli", "lz4_raw")
# Arrow looks so many bytes further, for the sake of old files.
_SLACK = 100
_DELTA_LENGTHS, _DELTA_BYTES = 6, 7
_REPEATING = (2, 8, _DELTA_BYTES)  # the first two are dictionaries
_BYTES, _FIXED_BYTES = "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"


@dataclass(frozen=True)
class PageHeader:
    """A page's kind, packed and unpacked size in bytes, number of values, encoding, and position in the file."""

    kind: int
    packed: int
    unpacked: int
    values: int
    encoding: int
    place: int


@dataclass
class ColumnPages:
    """The pages of one column of a group of rows together.

    `repeated` is how many of the `values` are encoded in few bytes, and `longest` what each of these may come to. A row
    of a `nested` column holds any number of values.
    """

    path: str
    kind: str
    nested: bool
    unpacked: int = 0
    values: int = 0
    repeated: int = 0
    longest: int = 0
    encodings: set[int] = field(default_factory=set)

    def check_values(self, unpacked: int) -> None:
        """Refuse values that are read together and not backed by bytes: those of a row, or of a page of lengths.

        Raises:
            Refused: unpacks_too_far.
        """
        together = self.nested or not self.encodings.isdisjoint((_DELTA_LENGTHS, _DELTA_BYTES))
        if together and self.values > max(VALUES, unpacked):
            raise _too_far(f"column {self.path[:100]!r} holds {self.values:,} values in {unpacked:,} bytes")

    def to_be_dictionary(self, allowed: int) -> bool:
        """Return True if a row's values may be too large unless they are read as a dictionary.

        Raises:
            Refused: unpacks_too_far: they may be too large, and cannot be read as a dictionary.
        """
        most = self.repeated * self.longest if self.nested else 0
        if most > allowed and (self.kind != _BYTES or _DELTA_BYTES in self.encodings):
            raise _too_far(f"column {self.path[:100]!r} may unpack to {most:,} bytes")
        return most > BATCH_BYTES and self.kind == _BYTES and _DELTA_BYTES not in self.encodings


@dataclass(frozen=True)
class Plan:
    """Instructions for reading consecutive row groups: rows per batch, and columns to read as dictionaries.

    `unpacked` is the unpacked size of their pages in bytes.
    """

    groups: tuple[int, ...]
    rows: int
    as_dictionaries: tuple[str, ...]
    unpacked: int

    def with_next(self, other: Plan) -> Plan:
        """Return one plan for both."""
        dictionaries = tuple(dict.fromkeys((*self.as_dictionaries, *other.as_dictionaries)))
        rows = min(self.rows, other.rows)
        return Plan((*self.groups, *other.groups), rows, dictionaries, self.unpacked + other.unpacked)


def plans(stream: IO[bytes], schema: Any, allowed: int) -> Iterator[Plan]:
    """Yield plans for reading all row groups, small ones together.

    The page headers of a group are read when its plan is requested.

    Args:
        stream: the file.
        schema: pyarrow's schema of the file, of its columns without nesting.
        allowed: what all groups may unpack to in bytes.

    Raises:
        Refused: unpacks_too_far, or damaged_parquet where the headers cannot be read.
    """
    held: Plan | None = None
    for number, group in enumerate(_groups(stream, len(schema))):
        try:
            plan = _plan(stream, group, number, schema, allowed)
        except Refused:
            if held is not None:
                yield held
            raise
        allowed -= plan.unpacked
        if held is not None and held.unpacked + plan.unpacked > TOGETHER_BYTES:
            yield held
            held = None
        held = plan if held is None else held.with_next(plan)
    if held is not None:
        yield held


@dataclass(frozen=True)
class _Chunk:
    """The byte range of a column's pages in a row group, and their number of values."""

    start: int
    end: int
    values: int


@dataclass(frozen=True)
class _Group:
    """A group of rows by the footer."""

    rows: int
    chunks: tuple[_Chunk, ...]


def _groups(stream: IO[bytes], columns: int) -> Iterator[_Group]:
    """Yield the row groups that the footer lists."""
    try:
        for group in read_footer(stream).get(4) or ():
            chunks = tuple(_chunk(chunk) for chunk in group.get(1) or ())
            if len(chunks) != columns:
                raise ValueError(f"a group has {len(chunks)} columns, and the schema {columns}")
            yield _Group(whole(group.get(3)), chunks)
    except (ValueError, OverflowError, AttributeError, TypeError) as error:
        raise Refused("damaged_parquet", f"the footer is damaged ({error}); copy or write the file again") from error


def _chunk(fields: dict[int, Any]) -> _Chunk:
    """Return a ColumnChunk: its meta_data is field 3; fields 8 and 9 mean that it is encrypted."""
    if 8 in fields or 9 in fields:
        raise ValueError("a column is encrypted, which is not supported")
    known = fields[3] if isinstance(fields.get(3), dict) else {}
    start, dictionary = whole(known.get(9)), known.get(11)
    if isinstance(dictionary, int) and 0 < dictionary < start:
        start = dictionary
    return _Chunk(start, start + whole(known.get(7)), whole(known.get(5)))


def _plan(stream: IO[bytes], group: _Group, number: int, schema: Any, allowed: int) -> Plan:
    """Return the plan for reading one row group."""
    columns = [_column(stream, chunk, schema.column(place)) for place, chunk in enumerate(group.chunks)]
    unpacked = sum(column.unpacked for column in columns)
    if unpacked > allowed:
        raise _too_far(f"a row group unpacks to {unpacked:,} bytes; {allowed:,} are allowed")
    for column in columns:
        column.check_values(unpacked)
    dictionaries = tuple(column.path for column in columns if column.to_be_dictionary(allowed))
    of_a_row = unpacked // max(1, group.rows) + sum(column.longest for column in columns if not column.nested)
    rows = min(BATCH_ROWS, max(1, BATCH_BYTES // max(1, of_a_row)))
    return Plan((number,), rows, dictionaries, unpacked)


def _too_far(what: str) -> Refused:
    return Refused("unpacks_too_far", f"{what}; write the file again with smaller pages and groups, or as .jsonl")


def _column(stream: IO[bytes], chunk: _Chunk, schema: Any) -> ColumnPages:
    """Return the pages of one column of a row group."""
    pages = ColumnPages(schema.path, schema.physical_type, nested=schema.max_repetition_level > 0)
    for header in _headers(stream, chunk.start, chunk.end, chunk.values):
        if header.unpacked > max(PAGE_BYTES, PAGE_RATIO * header.packed):
            raise _too_far(
                f"a page of column {schema.path[:100]!r} unpacks from {header.packed:,} to {header.unpacked:,} bytes"
            )
        pages.unpacked += header.unpacked
        if header.kind in (_DATA, _DATA_V2):
            pages.values += header.values
            pages.repeated += header.values if header.encoding in _REPEATING else 0
            pages.encodings.add(header.encoding)
        if header.kind == _DICTIONARY and schema.physical_type == _BYTES:
            pages.longest = max(pages.longest, _longest_entry(stream, header))
        elif header.kind == _DICTIONARY and schema.physical_type == _FIXED_BYTES:
            pages.longest = max(pages.longest, schema.length)
        elif header.encoding == _DELTA_BYTES:
            pages.longest = max(pages.longest, header.unpacked)
    return pages


def _longest_entry(stream: IO[bytes], header: PageHeader) -> int:
    """Return the length of a dictionary's longest text in bytes, or the dictionary's size if it cannot be determined.

    The footer names the codec, but pyarrow aborts the process on an unknown one, so every codec is tried. The result of
    the right one is as long as the header says.
    """
    if header.unpacked <= SMALL_DICTIONARY:
        return header.unpacked
    stream.seek(header.place)
    data = stream.read(header.packed)
    found = [_longest_text(plain, header.values) for plain in _unpackings(data, header.unpacked)]
    known = [longest for longest in found if longest is not None]
    return max(known) if known and len(known) == len(found) else header.unpacked


def _unpackings(data: bytes, size: int) -> Iterator[bytes]:
    """Yield the results of unpacking the bytes that have the expected size, codec by codec."""
    if len(data) == size:
        yield data
    for codec in _CODECS:
        try:
            plain = pa.Codec(codec).decompress(data, size, asbytes=True)
        except (pa.ArrowException, OSError, ValueError):
            continue
        if len(plain) == size:
            yield plain
    if int.from_bytes(data[:4], "big") <= size and int.from_bytes(data[4:8], "big") <= len(data):
        # It looks like Hadoop's LZ4, which is not tried, so nothing is known about the content.
        yield b""


def _longest_text(plain: bytes, count: int) -> int | None:
    """Return the longest of `count` texts, each after its length in four bytes; None if the bytes are not these."""
    longest = place = 0
    for _ in range(count):
        if place + 4 > len(plain):
            return None
        length = int.from_bytes(plain[place : place + 4], "little")
        longest = max(longest, length)
        place += 4 + length
    return longest if place == len(plain) else None


def _headers(stream: IO[bytes], start: int, end: int, values: int) -> Iterator[PageHeader]:
    """Yield the headers of the pages between two positions until they account for `values` values, as Arrow does."""
    seen = 0
    while start < end + _SLACK and seen < values:
        stream.seek(start)
        try:
            header = read_header(Thrift(stream))
        except (ValueError, OverflowError) as error:
            raise Refused("damaged_parquet", f"the header of the page at byte {start} is damaged ({error})") from error
        yield header
        if header.kind in (_DATA, _DATA_V2):
            seen += header.values
        start = header.place + header.packed


def read_header(thrift: Thrift) -> PageHeader:
    """Return a page's header.

    Raises:
        ValueError: the bytes are not a page header.
    """
    fields = thrift.struct()
    kind = whole(fields.get(1))
    # By the kind, where the structure with the rest lies, and where the encoding in it.
    place, encoding = {_DATA: (5, 2), _DICTIONARY: (7, 2), _DATA_V2: (8, 4)}.get(kind, (0, 0))
    inner = fields.get(place)
    values, encoded = (inner.get(1), inner.get(encoding)) if isinstance(inner, dict) else (0, 0)
    return PageHeader(kind, whole(fields.get(3)), whole(fields.get(2)), whole(values), whole(encoded), thrift.place)
