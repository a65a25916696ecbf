"""Rows as read from a landing file, single or in batches, and the limit on how far a file may expand.

This module is independent of the file format: `curation_assets.corpus.containers` reads lines, and
`curation_assets.corpus.parquet_rows` reads Parquet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from curation_assets.corpus.drafts import Refused
from curation_assets.corpus.fields import Row

EXCERPT_CHARS = 200

UNPACKED_BYTES = 2**29
"""Bytes that any packed file may expand to, however small it is."""

UNPACKED_RATIO = 100
"""Multiple of its size that a larger file may expand to: texts reach about 10, repeated prompts several tens."""

ROW_BYTES = 256
"""Minimum size that a row counts as, since it takes this much in the tables however short it is."""


@dataclass(frozen=True)
class RawRow:
    """One row: its values, or its problem.

    `index` counts from 0 and includes blank lines, which are not yielded; it is -1 if nothing of the file could be
    read. `ends_file` marks a problem after which nothing more of the file is read.
    """

    index: int
    value: Row | None
    problem: Refused | None
    excerpt: Callable[[], str]
    ends_file: bool = False


@dataclass(frozen=True)
class RowBatch:
    """Rows with values: `indices` and `values` correspond; `excerpt` returns the excerpt of one position.

    `not_finite` counts values NaN, Infinity and -Infinity, which JSON does not have; they are read as null.
    """

    indices: Sequence[int]
    values: list[Row]
    excerpt: Callable[[int], str]
    not_finite: int = 0

    def row(self, position: int) -> RawRow:
        """Return one of the rows."""
        return RawRow(self.indices[position], self.values[position], None, lambda: self.excerpt(position))


class Unpacked:
    """Tracks how much more a packed file may expand: a crafted file may expand to a thousand times its size or, in
    Parquet, to any size at all.

    Args:
        packed: the file's size in bytes.
    """

    def __init__(self, packed: int) -> None:
        self.allowed = max(UNPACKED_BYTES, UNPACKED_RATIO * packed)
        self._taken = 0

    def take(self, size: int) -> None:
        """Record that `size` bytes have been unpacked.

        Raises:
            Refused: unpacks_too_far: the limit is exceeded.
        """
        self._taken += size
        if self._taken > self.allowed:
            raise Refused(
                "unpacks_too_far",
                f"the file unpacks to more than {self.allowed:,} bytes, over {UNPACKED_RATIO} times its size. "
                "If this is intended, land it as .jsonl, unpacked.",
            )

    def take_rows(self, count: int, size: int) -> None:
        """Record rows, `size` bytes of which have already been recorded.

        Raises:
            Refused: unpacks_too_far.
        """
        self.take(max(0, ROW_BYTES * count - size))


def file_problem(reason: str, detail: str) -> RawRow:
    """Return the problem of a file that cannot be read at all."""
    return RawRow(-1, None, Refused(reason, detail), str, ends_file=True)


def is_trouble(error: BaseException) -> bool:
    """Return whether an error is one of memory or disk, which says nothing about the file (Arrow's have no errno)."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)


def line_excerpt(data: bytes) -> Callable[[], str]:
    """Return a function that gives the beginning of a line, as displayed."""
    # Keep only the head alive; a character takes at most four bytes.
    head = data[: 4 * EXCERPT_CHARS]
    return lambda: _clean(head.decode("utf-8", errors="replace"))


def text_excerpt(value: str) -> Callable[[], str]:
    """Return a function that gives the beginning of a text, as displayed."""
    head = value[:EXCERPT_CHARS]
    return lambda: _clean(head)


def _clean(value: str) -> str:
    return value[:EXCERPT_CHARS].replace("\0", "\N{REPLACEMENT CHARACTER}")
