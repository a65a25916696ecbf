"""Content hashes of values and files, with a cache for files, and atomic writes.

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
    """Return the hash of JSON-like values; equal values give equal hashes whatever the order of mapping keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()


def now() -> str:
    """Return the current time for a table's footer, which makes tables with equal rows differ."""
    return datetime.now(UTC).isoformat()


def bytes_digest(data: bytes | memoryview) -> str:
    """Return the hash of bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class RunningDigest:
    """Computes the `bytes_digest` of bytes that arrive in chunks."""

    def __init__(self) -> None:
        self._state = hashlib.blake2b(digest_size=16)

    def add(self, data: bytes) -> None:
        """Add the next bytes."""
        self._state.update(data)

    def value(self) -> str:
        """Return the hash of all bytes so far."""
        return self._state.hexdigest()


def hash_file(path: Path) -> str:
    """Return the hash of a file's bytes, read in chunks."""
    state = RunningDigest()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            state.add(chunk)
    return state.value()


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file atomically; see `replacing`."""
    with replacing(path) as beside:
        beside.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`; it is synced and renamed over `path` if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        os.fchmod(handle, 0o644)
        yield Path(temporary)
        # Sync the file whichever handle wrote it: a name must not appear before its content.
        os.fsync(handle)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


class DigestCache:
    """Caches hashes of files by path, size, times and inode.

    The cache file is optional: losing it only costs time, and an entry whose size or time no longer matches is ignored.
    Call
    `save` after a round of look-ups. Concurrent writers overwrite each other's file as a whole, which only loses
    entries.
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
                # An unreadable cache is treated as empty: the hashes are computed again.
                self._entries = {}

    def file_digest(self, path: Path) -> str:
        """Return the hash of the file's bytes, which are read only if size or time differ from the cached entry."""
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
        """Store the hash of a file that was just written."""
        path = path.resolve()
        self._entries[str(path)] = (_look(path), value)
        self._changed = True

    def save(self) -> None:
        """Write the cache file, if there is one and anything has changed."""
        if self._file is not None and self._changed:
            # If the cache cannot be written (a read-only home), the hashes are computed again next time.
            with contextlib.suppress(OSError):
                atomic_write(self._file, json.dumps(self._entries).encode())
            self._changed = False


def _look(path: Path) -> str:
    stat = path.stat()
    # Change time and inode detect a file that was replaced by one of equal size and modification time.
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
