"""Read rows from a landing file's bytes: lines of (gzipped) JSON, or the rows of a Parquet file.

Files are streamed, so memory is bounded by the longest allowed row. Reading stops if a packed file expands to far more
than its size (`curation_assets.corpus.raw_rows.Unpacked`).
Bad input never raises an exception: problems of a row, or of the rest of a file, are part of the yielded items.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import orjson

from curation_assets.corpus.drafts import Refused
from curation_assets.corpus.fields import Exact, Row, kind
from curation_assets.corpus.parquet_rows import parquet_batches
from curation_assets.corpus.raw_rows import RawRow, RowBatch, Unpacked, file_problem, is_trouble, line_excerpt

_HEAD = 1 << 18
_BLOCK = 1 << 22
_STREAM_ERRORS = (OSError, EOFError, zlib.error, Refused)
_BOM = b"\xef\xbb\xbf"
_CONSTANTS = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\bInfinity\b|\bNaN\b')
"""Texts of JSON, and the constants that JSON does not have."""

_LONG = b"0" * 19
_DIGITS = bytes(ord("0") if byte in b"0123456789." else byte for byte in range(256))
"""Maps digits and points to 0, so that `_LONG` finds numbers that a double or 64 bits may not hold: 17 digits fit a
double, and 18 a 64-bit integer."""

_BRACKETS = (b"[", b"]", b"{", b"}")
"""Lines of files that hold a JSON array, or an object over several lines."""

_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


@dataclass(frozen=True)
class Line:
    """An unreadable line, without its line end: either `too_long`, with only its head kept, or the bytes since the last
    line end at the point where the reader is `broken`.
    """

    data: bytes
    too_long: bool = False
    broken: Exception | None = None


def read_rows(data: Path | bytes, name: str, max_row_bytes: int) -> Iterator[RawRow]:
    """Yield the rows of a landing file one by one, choosing the format by file extension; see `RawRow`.

    Bad rows may be yielded before good ones nearby.
    """
    for item in read_batches(data, name, max_row_bytes):
        if isinstance(item, RawRow):
            yield item
        else:
            yield from map(item.row, range(len(item.values)))


def read_batches(data: Path | bytes, name: str, max_row_bytes: int) -> Iterator[RowBatch | RawRow]:
    """Yield the rows of a landing file in batches of a few MiB; bad rows are yielded separately."""
    ending = name.lower()
    try:
        stream: IO[bytes] = io.BytesIO(data) if isinstance(data, bytes) else data.open("rb")
    except OSError as error:
        yield file_problem("unreadable", f"the file cannot be opened: {error.strerror}")
        return
    with closing(stream):
        if ending.endswith(".parquet"):
            yield from parquet_batches(stream, max_row_bytes)
        elif ending.endswith(".jsonl"):
            yield from _json_batches(stream, max_row_bytes)
        elif ending.endswith(".jsonl.gz"):
            unpacked = Unpacked(stream.seek(0, io.SEEK_END))
            stream.seek(0)
            yield from _json_batches(cast(IO[bytes], gzip.GzipFile(fileobj=stream)), max_row_bytes, unpacked)
        else:
            yield file_problem(
                "unknown_extension", "unsupported file extension. Rename the file to .jsonl, .jsonl.gz or .parquet."
            )


def line_groups(read: Callable[[int], bytes], limit: int) -> Iterator[list[bytes] | Line]:
    """Yield the lines of each block of a reader together; lines of more than `limit` bytes are yielded separately.

    An error of the reader ends the stream: the last item then holds the bytes since the last line end, and the error in
    `broken`.
    """
    pending: list[bytes] = []
    size = 0
    while True:
        try:
            block = read(_BLOCK)
        except _STREAM_ERRORS as error:
            if is_trouble(error):
                raise
            yield Line(_joined(pending, size > limit), size > limit, error)
            return
        first, end, rest = block.partition(b"\n")
        if size <= limit:  # once the line is too long, its further bytes are counted and not kept
            pending.append(first)
        size += len(first)
        if not end and block:
            continue
        if size or end:
            yield Line(_joined(pending, too_long=True), too_long=True) if size > limit else [b"".join(pending)]
        if not block:
            return
        *lines, last = rest.split(b"\n")
        yield from _by_length(lines, limit)
        pending, size = [last], len(last)


def _by_length(lines: list[bytes], limit: int) -> Iterator[list[bytes] | Line]:
    """Yield the lines in order, with too long ones separate."""
    if max(map(len, lines), default=0) <= limit:
        if lines:
            yield lines
        return
    for line in lines:
        yield [line] if len(line) <= limit else Line(line[:_HEAD], too_long=True)


def _joined(pieces: list[bytes], too_long: bool) -> bytes:
    line = b"".join(pieces)
    return line[:_HEAD] if too_long else line


def decode(line: bytes) -> tuple[Row, int]:
    """Parse the JSON object of a line; return it, and the number of values NaN and Infinity, which become null.

    Numbers keep every digit.

    Raises:
        Refused: nul_byte, invalid_utf8, invalid_unicode, nested_too_deep, not_json, not_object.
    """
    not_finite = 0
    try:
        value = orjson.loads(line)
        if _lossy(value, line):
            value = _exact(line)
    except orjson.JSONDecodeError as error:
        if b"NaN" not in line and b"Infinity" not in line:
            raise _json_refusal(line, error) from error
        try:
            # orjson knows what else may be wrong with the line.
            orjson.loads(_CONSTANTS.sub(_null_outside_texts, line))
            value = _exact(line)
            not_finite = sum(not found.startswith(b'"') for found in _CONSTANTS.findall(line))
        except orjson.JSONDecodeError as other:
            raise _json_refusal(line, other) from error
    if not isinstance(value, dict):
        raise Refused("not_object", f"the line is {kind(value)}, not an object. Write one JSON object per line.")
    return value, not_finite


def _lossy(value: object, line: bytes) -> bool:
    """Return whether a parsed line may have lost digits: orjson parses long integers as doubles, too."""
    found = _doubles(value)
    return bool(found) and _LONG in line.translate(_DIGITS) and not all(_as_written(one, line) for one in found)


def _doubles(row: object) -> list[float]:
    """Return the doubles in a row, at any depth."""
    # A stack of its own: rows may be nested as deeply as Python's.
    found: list[float] = []
    rest = [row]
    while rest:
        value = rest.pop()
        if type(value) is float:
            found.append(value)
        elif type(value) is dict:
            rest.extend(cast(Row, value).values())
        elif type(value) is list:
            rest.extend(cast(list[object], value))
    return found


def _as_written(value: float, line: bytes) -> bool:
    """Return whether the shortest text of a double is a value in the line, as most writers write it."""
    text = repr(value).encode()
    at = line.find(text)
    while at > 0:
        end = at + len(text)
        # A slice, since a number by itself ends the line.
        if line[at - 1] in b":[, \t" and line[end : end + 1] in b",]} \t\r":
            return True
        at = line.find(text, at + 1)
    return False


def _null_outside_texts(found: re.Match[bytes]) -> bytes:
    return found[0] if found[0].startswith(b'"') else b"null"


def _exact(line: bytes) -> object:
    """Parse valid JSON (but for NaN and Infinity, which become null) with every digit of its numbers.

    Raises:
        Refused: nested_too_deep: orjson allows somewhat deeper nesting than this parser.
    """
    try:
        return json.loads(line, parse_int=Exact.integer, parse_float=Exact.decimal, parse_constant=lambda _: None)
    except RecursionError as error:
        raise Refused("nested_too_deep", "the row's values are nested too deeply. Flatten the row.") from error


def _json_batches(stream: IO[bytes], limit: int, unpacked: Unpacked | None = None) -> Iterator[RowBatch | RawRow]:
    # read1 returns after a single read of the source, so an error never discards good bytes.
    read = _gathering(_metered(cast(io.BufferedReader, stream).read1, unpacked))
    index = 0
    for group in line_groups(read, limit):
        if isinstance(group, Line):
            data = group.data.removeprefix(_BOM) if index == 0 else group.data
            excerpt = line_excerpt(data)
            if group.broken is not None:
                yield _broken(group.broken, index, excerpt, nothing_read=index == 0 and not data)
            else:
                detail = f"the row is longer than {limit} bytes. Raise corpus.max_row_bytes or split it."
                yield RawRow(index, None, Refused("row_too_long", detail), excerpt)
            index += 1
            continue
        if index == 0:
            group[0] = group[0].removeprefix(_BOM)
        try:
            if unpacked is not None:
                unpacked.take_rows(len(group), sum(map(len, group)))
        except Refused as refusal:
            yield RawRow(index, None, refusal, line_excerpt(group[0]), ends_file=True)
            return
        yield from _decoded(group, index)
        index += len(group)


def _metered(read: Callable[[int], bytes], unpacked: Unpacked | None) -> Callable[[int], bytes]:
    """Return a reader that stops when a packed file has expanded too far."""
    if unpacked is None:
        return read

    def metered(size: int) -> bytes:
        block = read(size)
        unpacked.take(len(block))
        return block

    return metered


def _gathering(read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """Return a reader that fills each request completely, since a compressed stream returns little at a time.

    An error that follows good bytes is raised by the next read.
    """
    failed: list[Exception] = []

    def gather(size: int) -> bytes:
        if failed:
            raise failed.pop()
        pieces: list[bytes] = []
        while size > 0:
            try:
                piece = read(size)
            except _STREAM_ERRORS as error:
                if not pieces:
                    raise
                failed.append(error)
                break
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    return gather


def _decoded(lines: list[bytes], start: int) -> Iterator[RowBatch | RawRow]:
    """Yield the rows of lines: all at once, or one by one if any is bad, to find out which."""

    def excerpt(position: int) -> str:
        return line_excerpt(lines[position])()

    try:
        values = list(map(orjson.loads, lines))
        for position, line in enumerate(lines):
            if _lossy(values[position], line):
                values[position] = _exact(line)
    except (orjson.JSONDecodeError, Refused):
        values = []
    if values and set(map(type, values)) == {dict}:
        yield RowBatch(range(start, start + len(lines)), values, excerpt)
        return
    good: list[tuple[int, Row]] = []
    not_finite = 0
    for position, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row, constants = decode(line)
            good.append((position, row))
            not_finite += constants
        except Refused as refusal:
            yield RawRow(start + position, None, refusal, line_excerpt(line))
    if good:
        positions, rows = zip(*good, strict=True)
        indices = [start + position for position in positions]
        yield RowBatch(indices, list(rows), lambda number: excerpt(positions[number]), not_finite)


def _broken(error: Exception, index: int, excerpt: Callable[[], str], *, nothing_read: bool) -> RawRow:
    mend = "Copy the file again."
    if isinstance(error, EOFError):
        problem = Refused("truncated_gzip", f"the compressed stream ends in row {index}. {mend}")
    elif isinstance(error, Refused):
        problem = error
    elif isinstance(error, (gzip.BadGzipFile, zlib.error)):
        if nothing_read:
            return file_problem("not_gzip", f"the file is not gzip ({error}). Rename it or copy it again.")
        problem = Refused("damaged_gzip", f"the compressed stream is corrupt from row {index} on ({error}). {mend}")
    else:
        problem = Refused("unreadable", f"reading stopped in row {index}: {type(error).__name__}. {mend}")
    return RawRow(index, None, problem, excerpt, ends_file=True)


def _json_refusal(line: bytes, error: orjson.JSONDecodeError) -> Refused:
    if b"\0" in line:
        return Refused(
            "nul_byte", "the line contains NUL bytes. Check whether it was truncated while being written, or is UTF-16."
        )
    try:
        line.decode()
    except UnicodeDecodeError as wrong:
        return Refused("invalid_utf8", f"byte {wrong.start} of the line is not UTF-8. Convert the file to UTF-8.")
    # Each line is a document of its own, so that the parser would call any of them line 1.
    said = f"{error.msg} at column {error.colno}"
    if "surrogate" in error.msg and _HALF_PAIR.search(line):
        return Refused("invalid_unicode", f"half of a surrogate pair ({said}). Write the complete character.")
    if "depth limit" in error.msg or "ecursion" in error.msg:
        return Refused("nested_too_deep", f"{said}. Flatten the row.")
    part = line.strip()
    several = "; the file seems to hold JSON that spans lines" if part in _BRACKETS or part.endswith(b",") else ""
    return Refused("not_json", f"{said}{several}. Write one JSON object per line.")
