"""Content hashes: of values, of files (cached), and nothing else.

Every fingerprint in the project is a BLAKE2b hash of 128 bits in hex, so keys look alike everywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 22


def digest(*parts: Any) -> str:
    """Hash of JSON-like values; equal values give equal hashes whatever the order of mapping keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()


def now() -> str:
    """The time, for the footer of a table: of two that were written the later one is another."""
    return datetime.now(UTC).isoformat()


def bytes_digest(data: bytes | memoryview) -> str:
    """Hash of bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class RunningDigest:
    """The `bytes_digest` of bytes that come in pieces."""

    def __init__(self) -> None:
        self._state = hashlib.blake2b(digest_size=16)

    def add(self, data: bytes) -> None:
        """Take in the bytes that come next."""
        self._state.update(data)

    def value(self) -> str:
        """Of all bytes so far."""
        return self._state.hexdigest()


def hash_file(path: Path) -> str:
    """Hash of a file's bytes, read in chunks."""
    state = RunningDigest()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            state.add(chunk)
    return state.value()


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; see `replacing`."""
    with replacing(path) as beside:
        beside.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to be filled beside `path`, synced and renamed over it when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        os.fchmod(handle, 0o644)
        yield Path(temporary)
        # Of the file, whoever wrote it: a name must not be there before what it names.
        os.fsync(handle)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


class DigestCache:
    """Hashes of files, remembered by path, size, times and inode.

    The cache file is only a memory: losing it costs time, and an entry whose size or time no longer
    matches is ignored. Call `save` after a round of look-ups; concurrent writers overwrite one another
    whole, which loses some memory and nothing else.
    """

    def __init__(self, cache_file: Path | None = None) -> None:
        self._file = cache_file
        self._entries: dict[str, tuple[str, str]] = {}
        self._changed = False
        if cache_file is not None:
            try:
                stored = json.loads(cache_file.read_text())
                self._entries = {
                    path: (look, value)
                    for path, (look, value) in stored.items()
                    if isinstance(look, str) and isinstance(value, str)
                }
            except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
                # A cache that cannot be read is as good as none: the hashes are simply made again.
                self._entries = {}

    def file_digest(self, path: Path) -> str:
        """Hash of the file's bytes, read only if size or time differ from what is remembered."""
        path = path.resolve()
        look = _look(path)
        known = self._entries.get(str(path))
        if known is not None and known[0] == look:
            return known[1]
        value = hash_file(path)
        self._entries[str(path)] = (look, value)
        self._changed = True
        return value

    def remember(self, path: Path, value: str) -> None:
        """Take the hash of a file that was just written."""
        path = path.resolve()
        self._entries[str(path)] = (_look(path), value)
        self._changed = True

    def save(self) -> None:
        """Write the cache file, if there is one and something is new."""
        if self._file is not None and self._changed:
            # Where the cache cannot be kept (a home that is read-only), the hashes are made again next time.
            with contextlib.suppress(OSError):
                atomic_write(self._file, json.dumps(self._entries).encode())
            self._changed = False


def _look(path: Path) -> str:
    stat = path.stat()
    # Time of change and inode catch a file that was replaced by one of equal size and time.
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
