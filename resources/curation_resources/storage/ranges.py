"""A file elsewhere as a stream that can be sought in, of which only what is read is fetched."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any


class RangeReader(io.RawIOBase):
    """A stream over ranges of bytes.

    Args:
        size: of the file, in bytes.
        fetch: gives the bytes from one position to before another.
    """

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        super().__init__()
        self._size = size
        self._fetch = fetch
        self._position = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position; see `io.IOBase.seek`."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fetch as much as fits; 0 at the end."""
        end = min(self._size, self._position + len(buffer))
        if end <= self._position:
            return 0
        piece = self._fetch(self._position, end)
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)
