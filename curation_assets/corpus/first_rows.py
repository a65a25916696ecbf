"""Read or copy the first rows of landing files: for plans, dry runs and `curate init`.

The first rows are copied into a small file of the same format, which is read like any other file. So its rows, formats
and problems are those that a run reports.
"""

from __future__ import annotations

import gzip
import io
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

import pyarrow.parquet as pq  # type: ignore[import-untyped]

from curation_assets.config.corpus_settings import Corpus
from curation_assets.corpus.parquet_rows import PARQUET_ERRORS, copy_first_parquet_rows
from curation_assets.corpus.raw_rows import is_trouble
from curation_assets.corpus.reading import ShardRows, read_shard
from curation_resources.storage.landing import Landing, LandingFile

PACKED_BLOCK = 2**12
"""Bytes of a packed file to read at a time; the position in the file is known to this precision."""

UNPACKED_RATIO = 16
"""Text compresses to about a tenth. Of a file that expands further, only this multiple of `size` is copied."""


def read_first_rows(
    landing: Landing,
    file: LandingFile,
    corpus: Corpus,
    size: int,
    images_root: Path,
    keep_image: Callable[[str, bytes], None] | None = None,
) -> tuple[ShardRows, float]:
    """Read a file, or only about the first `size` bytes of a larger one.

    Args:
        landing: the landing area.
        file: the file.
        corpus: how to read it.
        size: number of bytes of the file to read.
        images_root: the folder that image paths are relative to.
        keep_image: stores the bytes of an image inside a row under their digest; None to discard them.

    Returns:
        The rows, and the fraction of the file that they are.

    Raises:
        OSError: the file cannot be opened.
    """
    if file.size <= size:
        whole = landing.path(file.shard)
        return read_shard(whole, file.shard, file.name, corpus, images_root, keep_image), 1.0
    with tempfile.TemporaryDirectory(prefix="curation-rows-") as folder:
        head = Path(folder) / "head"
        share = copy_first_rows(landing, file, head, corpus.max_row_bytes, size=size)
        return read_shard(head, file.shard, file.name, corpus, images_root, keep_image), share


def copy_first_rows(
    landing: Landing, file: LandingFile, target: Path, longest: int, *, rows: int | None = None, size: int | None = None
) -> float:
    """Copy the first rows of a file until `rows` rows, or about `size` bytes of the file, have been read.

    A file that is not what its name says is copied completely, so that reading the copy reports the same problem.

    Args:
        landing: the landing area.
        file: the file.
        target: the copy; its folder exists.
        longest: maximum bytes of a line; a longer line is cut just beyond this, and ends the copy.
        rows: maximum number of rows to copy; None: no limit.
        size: number of bytes of the file to read; None: no limit.

    Returns:
        The fraction of the file that was copied: of its rows in Parquet, of its bytes otherwise.

    Raises:
        OSError: the file cannot be opened.
    """
    name = file.name.lower()
    with landing.open(file.shard) as stream:
        if name.endswith(".parquet"):
            share = _copy_parquet(stream, target, rows, size, file.size)
        elif name.endswith(".gz"):
            share = _copy_packed(stream, target, longest, rows, size, file.size)
        else:
            with target.open("wb") as out:
                for line in _first_lines(stream, rows, longest):
                    if size is not None and out.tell() and out.tell() + len(line) > size:
                        break
                    out.write(line)
            share = min(1.0, target.stat().st_size / file.size) if file.size else 1.0
    if share is None:
        shutil.copyfile(landing.path(file.shard), target)
        return 1.0
    return share


def _copy_parquet(stream: BinaryIO, target: Path, rows: int | None, size: int | None, of_size: int) -> float | None:
    """Copy the first rows of a Parquet file; return None if it cannot be read."""
    try:
        with pq.ParquetFile(stream) as parquet:
            count = parquet.metadata.num_rows
        wanted = count if size is None else max(1, round(count * size / of_size))
        copied = copy_first_parquet_rows(stream, wanted if rows is None else min(wanted, rows), target)
    except PARQUET_ERRORS as error:
        if is_trouble(error):
            raise
        return None
    return copied / count if count else 1.0


def _copy_packed(
    stream: BinaryIO, target: Path, longest: int, rows: int | None, size: int | None, of_size: int
) -> float | None:
    """Copy the first lines of a gzip file; return None if it is damaged that early."""
    source = _Unpacked(stream)
    copied = 0
    try:
        with gzip.open(target, "wb", 1) as out:
            for line in _first_lines(io.BufferedReader(source), rows, longest):
                copied += out.write(line)
                if size is not None and (stream.tell() >= size or copied >= UNPACKED_RATIO * size):
                    break
    except (EOFError, OSError, zlib.error):
        return None
    return min(1.0, stream.tell() / of_size * copied / source.unpacked) if copied else 1.0


def _first_lines(stream: IO[bytes], count: int | None, longest: int) -> Iterator[bytes]:
    """Yield the first lines, up to a line that is too long, of which only the beginning is returned."""
    left = count
    while left is None or left > 0:
        # The limit, the line end, and one byte more.
        line = stream.readline(longest + 2)
        yield line
        if not line.endswith(b"\n"):
            return
        left = None if left is None else left - 1


class _Unpacked(io.RawIOBase):
    """The content of a gzip file with one or more members, and how many bytes what was read of it unpacks to.

    `gzip` reads too far ahead to relate its position to that in the file.
    """

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._blocks = self._unpack(stream)
        self._rest = b""
        self.unpacked = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with the next bytes; return their number."""
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = block
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _unpack(self, stream: BinaryIO) -> Iterator[bytes]:
        member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        while packed := stream.read(PACKED_BLOCK):
            parts = [member.decompress(packed)]
            while member.eof and (rest := member.unused_data.lstrip(b"\0")):
                member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
                parts.append(member.decompress(rest))
            block = b"".join(parts)
            self.unpacked += len(block)
            yield block
        if not member.eof:
            raise EOFError
