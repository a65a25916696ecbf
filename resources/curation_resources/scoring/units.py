"""Units of work for workers of both engines: cut by how much work their samples are, the largest first.

Everything here is plain arithmetic without torch, so that a simulation of a thousand workers cuts as the engines do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from curation_resources.scoring.samples import Sample

Progress = Callable[[int], None]
"""Called with the number of samples that were done since the last call."""

TRIES = 2
"""So many workers may die over the same unit before the run ends with an error."""

SHARE_OF_REST = 4
"""A unit is this part of a worker's share of what is left: units shrink, and the last ones end close together."""

LEAST_CHARACTERS = 20_000
"""Of a unit, where there are so many: fewer would leave batches half empty."""

MOST_CHARACTERS = 1_000_000
"""Of a unit's texts: a unit is what is given to a worker at once."""

IMAGE_CHARACTERS = 4_000
"""Work of an image, in characters."""


class Positioned(Protocol):
    """A result that knows its sample's place in the input."""

    position: int


Asked = TypeVar("Asked")
Found = TypeVar("Found", bound=Positioned)
Tag = TypeVar("Tag")


@dataclass(frozen=True, eq=False)
class Source(Generic[Tag]):
    """Samples that are asked the same of, as the shard that they lie in has them.

    Attributes:
        tag: what the caller knows them by.
        work: of each of them, in characters.
        payload: what a worker is sent of those at some positions.
        asked: what is asked of them.
    """

    tag: Tag
    work: Sequence[int]
    payload: Callable[[Sequence[int]], Any]
    asked: Any = None


@dataclass(eq=False)
class Unit(Generic[Tag]):
    """Samples that one worker measures together.

    Attributes:
        source: where they come from.
        positions: of the samples in it.
        deaths: workers that died over it.
        given: how often it was given to a worker.
    """

    source: Source[Tag]
    positions: list[int]
    deaths: int = 0
    given: int = 0


def work_of(sample: Sample) -> int:
    """About how much work a sample is: characters of its prompt and response, and its images."""
    texts = sum(len(turn["content"]) for turn in sample.messages) + len(sample.response)
    return texts + IMAGE_CHARACTERS * len(sample.images)


class UnitQueue(Generic[Tag]):
    """Units of sources, one source after another, and of each the longest samples first.

    A long trace that came last would be waited for by all others, and so would a large unit: once all sources are
    known, a unit is a part of a worker's share of the work that is left (guided self-scheduling). A source is taken in
    before the one before it is used up, so that nobody waits between two of them.

    Args:
        sources: taken when they are needed; who makes them may read them then.
        workers: that share the units.
    """

    def __init__(self, sources: Iterable[Source[Tag]], workers: int) -> None:
        self._sources: Iterator[Source[Tag]] | None = iter(sources)
        self._workers = workers
        self._again: deque[Unit[Tag]] = deque()
        self._waiting: deque[tuple[Source[Tag], deque[int]]] = deque()
        self._left = 0
        self._least = 1

    def again(self, units: Sequence[Unit[Tag]]) -> None:
        """Units that have to be given once more come first."""
        self._again.extendleft(reversed(units))

    def left(self) -> bool:
        """Whether there are units that are to be given."""
        self._take_in()
        return bool(self._again or self._waiting)

    def next(self) -> Unit[Tag] | None:
        """The next unit; None if there is none left."""
        if self._again:
            return self._again.popleft()
        self._take_in()
        if not self._waiting:
            return None
        source, order = self._waiting[0]
        largest = self._largest()
        positions = [order.popleft()]
        filled = source.work[positions[0]]
        while order and filled + source.work[order[0]] <= largest:
            positions.append(order.popleft())
            filled += source.work[positions[-1]]
        self._left -= filled
        if not order:
            self._waiting.popleft()
        return Unit(source, positions)

    def _largest(self) -> int:
        """Characters of a unit now."""
        if self._sources is not None:
            return MOST_CHARACTERS
        return min(MOST_CHARACTERS, max(self._least, self._left // (self._workers * SHARE_OF_REST)))

    def _take_in(self) -> None:
        """Have a unit at hand for every worker, as long as there is anything."""
        while self._sources is not None and self._left < self._workers * MOST_CHARACTERS:
            source = next(self._sources, None)
            if source is None:
                self._sources = None
                # Where there is little to do, no worker is to go without.
                self._least = max(1, min(LEAST_CHARACTERS, self._left // (self._workers * SHARE_OF_REST)))
                return
            order = sorted(range(len(source.work)), key=lambda position: (-source.work[position], position))
            if order:
                self._waiting.append((source, deque(order)))
                self._left += sum(source.work)
