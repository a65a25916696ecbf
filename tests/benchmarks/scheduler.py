"""A simulation of many workers that take units from one run, as the engines hand them out (`UnitQueue`).

Work is in characters and time in seconds. What the run itself does (cutting a unit and sending it, reading a shard and
recording it) happens one after another; a worker that has measured what it holds waits until it is given more.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from curation_resources.models.ray_engine import IN_FLIGHT
from curation_resources.scoring.units import Source, UnitQueue

SHARD_SAMPLES = 5_000
BLOCK = 1_000_000
"""Samples whose lengths are drawn at a time."""


@dataclass(frozen=True)
class Costs:
    """What a worker, and the run that serves it, take.

    Attributes:
        rate: characters that a worker measures in a second.
        unit: seconds of the run for a unit.
        shard: seconds of the run for a shard.
        sample: seconds of the run for a sample.
    """

    rate: float = 1.0
    unit: float = 0.0
    shard: float = 0.0
    sample: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        seconds: until the last worker is done.
        busy: the share of their time until then that workers work.
        run_busy: the share of it that the run itself works.
        units: that were given.
    """

    seconds: float
    busy: float
    run_busy: float
    units: int


def simulate(shards: Iterable[Sequence[int]], workers: int, costs: Costs) -> Outcome:
    """Measure shards (characters of each sample) with so many workers."""
    read = _Read()
    queue = UnitQueue(read.sources(shards), workers)
    # What each worker holds: when the unit was there, and the seconds that it takes.
    held: list[deque[tuple[float, float]]] = [deque() for _ in range(workers)]
    run_free = run_busy = work = 0.0
    units = 0
    working = [False] * workers
    ends: list[tuple[float, int]] = []

    def begin(worker: int, now: float) -> None:
        if held[worker]:
            there, seconds = held[worker].popleft()
            working[worker] = True
            heapq.heappush(ends, (max(now, there) + seconds, worker))

    def give(worker: int, now: float) -> None:
        nonlocal run_free, run_busy, work, units
        unit = queue.next()
        took = read.spend(costs)
        if unit is not None:
            took += costs.unit
            units += 1
            seconds = sum(unit.source.work[position] for position in unit.positions) / costs.rate
            work += seconds
        run_free = max(run_free, now) + took
        run_busy += took
        if unit is not None:
            held[worker].append((run_free, seconds))
            if not working[worker]:
                begin(worker, now)

    for _ in range(IN_FLIGHT):
        for worker in range(workers):
            give(worker, 0.0)
    last = 0.0
    while ends:
        now, worker = heapq.heappop(ends)
        last = max(last, now)
        working[worker] = False
        begin(worker, now)
        give(worker, now)
    last = max(last, run_free)
    return Outcome(last, work / (workers * last), run_busy / last, units)


class _Read:
    """What of the shards has been read since somebody asked."""

    def __init__(self) -> None:
        self._shards = self._samples = 0

    def sources(self, shards: Iterable[Sequence[int]]) -> Iterator[Source[int]]:
        for number, work in enumerate(shards):
            self._shards += 1
            self._samples += len(work)
            yield Source(number, work, list)

    def spend(self, costs: Costs) -> float:
        took = self._shards * costs.shard + self._samples * costs.sample
        self._shards = self._samples = 0
        return took


def gsm8k_lengths(count: int, seed: int = 1) -> list[int]:
    """Characters of samples as GSM8K has them."""
    lengths: list[int] = np.random.default_rng(seed).lognormal(6.0, 0.4, count).astype(int).tolist()
    return lengths


def long_lengths(count: int, seed: int = 1) -> list[int]:
    """Characters of long chains of thought, one in a hundred of which is very long."""
    draw = np.random.default_rng(seed)
    long = np.where(draw.random(count) < 0.01, draw.uniform(60_000, 400_000, count), draw.lognormal(9.0, 0.8, count))
    lengths: list[int] = np.minimum(long, 400_000).astype(int).tolist()
    return lengths


MIXES = {"gsm8k": gsm8k_lengths, "long": long_lengths}


def shards_of(mix: str, samples: int, shard_samples: int = SHARD_SAMPLES) -> Iterator[list[int]]:
    """Shards of a mix, drawn as they are needed."""
    block = max(shard_samples, BLOCK // shard_samples * shard_samples)
    for seed, begin in enumerate(range(0, samples, block)):
        lengths = MIXES[mix](min(block, samples - begin), seed)
        yield from (lengths[start : start + shard_samples] for start in range(0, len(lengths), shard_samples))
