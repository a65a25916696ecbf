"""Units of work for workers of both engines, cut by amount of work, the largest samples first.

Everything here is plain arithmetic without torch, so that a simulation of a thousand workers cuts as the engines do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from curation_resources.scoring.samples import Sample

Progress = Callable[[int], None]
"""Called with the number of samples done since the last call."""

TRIES = 2
"""Workers that may die over the same unit before the run ends with an error."""

SHARE_OF_REST = 4
"""A unit is this fraction of a worker's share of the remaining work: units shrink, and the last ones end together."""

LEAST_CHARACTERS = 20_000
"""Minimum characters of a unit, if available; fewer would leave batches half empty."""

MOST_CHARACTERS = 1_000_000
"""Maximum characters of a unit's texts, all of which are sent to a worker at once."""

IMAGE_CHARACTERS = 4_000
"""Work of an image, in characters."""


class Positioned(Protocol):
    """A result with its sample's position in the input."""

    position: int


Asked = TypeVar("Asked")
Found = TypeVar("Found", bound=Positioned)
Tag = TypeVar("Tag")


@dataclass(frozen=True, eq=False)
class Source(Generic[Tag]):
    """Samples of one shard with the same request.

    Attributes:
        tag: the caller's key for them.
        work: amount of work of each sample, in characters.
        payload: returns the data to send to a worker for the samples at some positions.
        asked: the request.
    """

    tag: Tag
    work: Sequence[int]
    payload: Callable[[Sequence[int]], Any]
    asked: Any = None


@dataclass(eq=False)
class Unit(Generic[Tag]):
    """Samples that one worker measures together.

    Attributes:
        source: their source.
        positions: positions of the samples in it.
        deaths: workers that died over it.
        given: number of times that it was assigned to a worker.
    """

    source: Source[Tag]
    positions: list[int]
    deaths: int = 0
    given: int = 0


def work_of(sample: Sample) -> int:
    """Return an estimate of a sample's work: characters of its prompt and response, and its images."""
    texts = sum(len(turn["content"]) for turn in sample.messages) + len(sample.response)
    return texts + IMAGE_CHARACTERS * len(sample.images)


class UnitQueue(Generic[Tag]):
    """Units of sources, one source after another, each with the longest samples first.

    All workers would have to wait for a long trace at the end, or for a large unit. So once all sources are known, a
    unit is
    a fraction of a worker's share of the remaining work (guided self-scheduling). The next source is read before the
    previous one is exhausted, so that no worker waits between two of them.

    Args:
        sources: consumed lazily, so they may be read on demand.
        workers: number of workers that share the units.
    """

    def __init__(self, sources: Iterable[Source[Tag]], workers: int) -> None:
        self._sources: Iterator[Source[Tag]] | None = iter(sources)
        self._workers = workers
        self._again: deque[Unit[Tag]] = deque()
        self._waiting: deque[tuple[Source[Tag], deque[int]]] = deque()
        self._left = 0
        self._least = 1

    def again(self, units: Sequence[Unit[Tag]]) -> None:
        """Put units that have to be assigned again at the front."""
        self._again.extendleft(reversed(units))

    def left(self) -> bool:
        """Return True if there are units left to assign."""
        self._read_sources()
        return bool(self._again or self._waiting)

    def next(self) -> Unit[Tag] | None:
        """Return the next unit; None if there is none left."""
        if self._again:
            return self._again.popleft()
        self._read_sources()
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
        """Return the current maximum characters of a unit."""
        if self._sources is not None:
            return MOST_CHARACTERS
        return min(MOST_CHARACTERS, max(self._least, self._left // (self._workers * SHARE_OF_REST)))

    def _read_sources(self) -> None:
        """Read sources until there is a unit for every worker, as far as possible."""
        while self._sources is not None and self._left < self._workers * MOST_CHARACTERS:
            source = next(self._sources, None)
            if source is None:
                self._sources = None
                # If there is little work, every worker should still get a unit.
                self._least = max(1, min(LEAST_CHARACTERS, self._left // (self._workers * SHARE_OF_REST)))
                return
            order = sorted(range(len(source.work)), key=lambda position: (-source.work[position], position))
            if order:
                self._waiting.append((source, deque(order)))
                self._left += sum(source.work)
