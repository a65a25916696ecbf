"""Split work into chunks that start small and grow while each chunk finishes quickly."""

from __future__ import annotations

import time
from collections.abc import Iterator

FIRST = 256
"""Items in the first chunk; small, so that killed work loses at most a minute or so of results."""
GROWTH = 4
SHORT_SECONDS = 30.0
"""A chunk that took less time is followed by a larger one, which spreads the fixed cost per chunk over more items."""


def pieces(count: int, largest: int, first: int = FIRST) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each chunk; a chunk's duration is measured until the next one is requested."""
    begin, size = 0, min(first, largest)
    while begin < count:
        started = time.monotonic()
        yield begin, min(begin + size, count)
        begin += size
        if time.monotonic() - started < SHORT_SECONDS:
            size = min(size * GROWTH, largest)
