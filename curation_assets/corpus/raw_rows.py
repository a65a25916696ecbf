"""What comes out of a landing file: rows, alone or together, and how far a file may unpack.

Nothing here knows how a file is packed; `curation_assets.corpus.containers` reads lines and
`curation_assets.corpus.parquet_rows` Parquet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from curation_assets.corpus.drafts import Refused
from curation_assets.corpus.fields import Row

EXCERPT_CHARS = 200

UNPACKED_BYTES = 2**29
"""What any packed file may unpack to, however small it is."""

UNPACKED_RATIO = 100
"""What a larger one may unpack to, in times its size: texts come to ten times, repeated prompts to some tens."""

ROW_BYTES = 256
"""What a row counts at least: that much it takes in the tables, however short it is."""


@dataclass(frozen=True)
class RawRow:
    """One row: its values, or what is wrong with it.

    `index` counts from 0 and includes blank lines, which are not yielded; it is -1 where nothing of the file
    could be read. `ends_file` marks a problem of the file that nothing comes after.
    """

    index: int
    value: Row | None
    problem: Refused | None
    excerpt: Callable[[], str]
    ends_file: bool = False


@dataclass(frozen=True)
class RowBatch:
    """Rows that all have values: `indices` and `values` go together; `excerpt` is of one position."""

    indices: Sequence[int]
    values: list[Row]
    excerpt: Callable[[int], str]

    def row(self, position: int) -> RawRow:
        """One of them by itself."""
        return RawRow(self.indices[position], self.values[position], None, lambda: self.excerpt(position))


class Unpacked:
    """How much more a packed file may unpack to. What is landed may be made to unpack to a thousand times its size
    or, in Parquet, to any size at all.

    Args:
        packed: the file's size in bytes.
    """

    def __init__(self, packed: int) -> None:
        self.allowed = max(UNPACKED_BYTES, UNPACKED_RATIO * packed)
        self._taken = 0

    def take(self, size: int) -> None:
        """So many bytes have been unpacked.

        Raises:
            Refused: unpacks_too_far: these are too many.
        """
        self._taken += size
        if self._taken > self.allowed:
            raise Refused(
                "unpacks_too_far",
                f"the file unpacks to more than {self.allowed:,} bytes, more than {UNPACKED_RATIO} times its size; "
                "if it is meant to, land it as .jsonl, unpacked",
            )

    def take_rows(self, count: int, size: int) -> None:
        """What rows add, of whose bytes `size` have been taken.

        Raises:
            Refused: unpacks_too_far.
        """
        self.take(max(0, ROW_BYTES * count - size))


def file_problem(reason: str, detail: str) -> RawRow:
    """What is wrong with a file of which nothing can be read."""
    return RawRow(-1, None, Refused(reason, detail), str, ends_file=True)


def line_excerpt(data: bytes) -> Callable[[], str]:
    """The beginning of a line as people see it."""
    # Only the head is kept alive; a character takes four bytes at most.
    head = data[: 4 * EXCERPT_CHARS]
    return lambda: _clean(head.decode("utf-8", errors="replace"))


def text_excerpt(value: str) -> Callable[[], str]:
    """The beginning of a text as people see it."""
    head = value[:EXCERPT_CHARS]
    return lambda: _clean(head)


def _clean(value: str) -> str:
    return value[:EXCERPT_CHARS].replace("\0", "\N{REPLACEMENT CHARACTER}")
