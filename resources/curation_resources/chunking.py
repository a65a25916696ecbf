"""Work that gives its results a piece at a time: small pieces first, larger ones where they take little time."""

from __future__ import annotations

import time
from collections.abc import Iterator

FIRST = 256
"""Items of the first piece: results of no more than a minute or so are lost when the work is killed."""
GROWTH = 4
SHORT_SECONDS = 30.0
"""A piece that took less is followed by a larger one: what is to be done once a piece is then spread over more."""


def pieces(count: int, largest: int, first: int = FIRST) -> Iterator[tuple[int, int]]:
    """Begin and end of each piece of so many items; how long a piece takes is seen when the next one is asked for."""
    begin, size = 0, min(first, largest)
    while begin < count:
        started = time.monotonic()
        yield begin, min(begin + size, count)
        begin += size
        if time.monotonic() - started < SHORT_SECONDS:
            size = min(size * GROWTH, largest)
