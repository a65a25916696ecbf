"""Passes on a Ray cluster: long-lived actors that load a model once; who is free takes the next unit of even work.

A pool of actors serves all passes of a run: an actor loads what it is asked for and lets go of it when the pass ends.
What an actor gives does not depend on how many others there are; one that dies, or whose node does, is replaced where
Ray finds room, and what it was given is measured again.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, Self

from resources.errors import UserError, in_a_line
from resources.scoring.samples import Sample
from resources.scoring.units import TRIES, Asked, Found, Progress

SHARE_OF_REST = 4
"""A unit is this part of a worker's share of what is left: units shrink, and the last ones end close together."""

LEAST_CHARACTERS = 20_000
"""Of a unit, where there are so many: fewer would leave batches half empty."""

MOST_CHARACTERS = 2_000_000
"""Of a unit's texts: a unit is what is lost when a worker dies."""

IN_FLIGHT = 2
"""Units that an actor holds: one that it measures and one that waits there, so that it is never idle."""

IMAGE_CHARACTERS = 4_000
"""Work of an image, in characters."""


class RayError(UserError):
    """A Ray cluster cannot be used, or its workers died again and again."""


@dataclass(frozen=True)
class RayOptions:
    """Which cluster, and what of it.

    Attributes:
        address: of the cluster: `auto` finds the one of this machine, `local` starts one for this process, or
            `ray://HOST:PORT`, or `HOST:PORT`.
        workers: actors; None: one a GPU, or where there is none one for every `cpus` CPUs.
        cpus: CPUs of an actor without a GPU, which are its threads.
    """

    address: str = "auto"
    workers: int | None = None
    cpus: int = 1


@dataclass
class Unit:
    """Samples that one worker measures together.

    Attributes:
        positions: of the samples in the stream.
        samples: the samples.
        deaths: workers that died over it.
    """

    positions: list[int]
    samples: list[Sample]
    deaths: int = 0


def work_of(sample: Sample) -> int:
    """About how much work a sample is: characters of its prompt and response, and its images."""
    texts = sum(len(turn["content"]) for turn in sample.messages) + len(sample.response)
    return texts + IMAGE_CHARACTERS * len(sample.images)


def even_units(work: Sequence[int], workers: int) -> list[list[int]]:
    """Positions of units, the longest samples first, each of a part of a worker's share of the work that is left.

    A long trace that came last would be waited for by all others; large units that came last, too (guided
    self-scheduling).

    Args:
        work: of every sample.
        workers: that share the units.
    """
    left = sum(work)
    # Where there is little to do, no worker is to go without.
    least = max(1, min(LEAST_CHARACTERS, left // (workers * SHARE_OF_REST)))
    units: list[list[int]] = []
    filled, share = 0, 0
    for position in sorted(range(len(work)), key=lambda position: (-work[position], position)):
        if not units or filled + work[position] > share:
            units.append([])
            filled, share = 0, min(MOST_CHARACTERS, max(least, left // (workers * SHARE_OF_REST)))
        units[-1].append(position)
        filled += work[position]
        left -= work[position]
    return units


def units_of(samples: Sequence[Sample], workers: int) -> deque[Unit]:
    """Units of samples: see `even_units`."""
    found = even_units([work_of(sample) for sample in samples], workers)
    return deque(Unit(positions, [samples[position] for position in positions]) for positions in found)


class Worker:
    """What an actor is: passes that it has loaded, by the number of their group."""

    def __init__(self, device: str, threads: int, prepare: Callable[[], None] | None) -> None:
        self._device, self._prepare = device, prepare
        # Before torch is loaded, which a pass does.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self._passes: dict[int, Any] = {}

    def measure(self, group: int, make: Callable[[Any, str], Any], spec: Any, samples: list[Sample], asked: Any) -> Any:
        """Results of a unit; the pass is loaded first if it is not there."""
        if group not in self._passes:
            if self._prepare is not None:
                self._prepare()
            self._passes[group] = make(spec, self._device)
        return self._passes[group].measure(samples, asked)

    def forget(self, group: int) -> None:
        """Let go of a pass."""
        self._passes.pop(group, None)

    def process(self) -> int:
        """Its process, on its node."""
        return os.getpid()

    def name(self) -> str:
        """What it runs on, as people call it."""
        from resources.scoring.devices import device_name  # noqa: PLC0415

        return device_name(self._device)


@dataclass
class _Actor:
    """An actor and what it was given, in order: the first is what it is at."""

    handle: Any
    units: list[tuple[Any, Unit]] = field(default_factory=list)


class RayPool:
    """Actors of a cluster; use it in a `with` block: they end with it.

    Args:
        options: which cluster, and what of it.
        prepare: what every actor calls before it loads a model.

    Raises:
        RayError: ray is not installed, there is no such cluster, or it has no room for a single worker.
    """

    def __init__(self, options: RayOptions, prepare: Callable[[], None] | None = None) -> None:
        self._options, self._prepare = options, prepare
        self.ray = _connected(options.address)
        resources = self.ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        self.device = "cuda" if gpus else "cpu"
        self.workers = options.workers or gpus or max(1, cpus // options.cpus)
        room = gpus if gpus else cpus // options.cpus
        if self.workers > room:
            raise RayError(
                f"engine.workers asks for {self.workers} workers, and the Ray cluster at {options.address} has room "
                f"for {room} ({gpus} GPUs, {cpus} CPUs): lower it, or engine.cpus_per_worker, or add nodes"
            )
        self.actors: list[_Actor] = []
        self._groups = count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the actors: what they are at is given up."""
        for actor in self.actors:
            self.ray.kill(actor.handle)
        self.actors = []

    def next_group(self) -> int:
        """A number that no pass has yet."""
        return next(self._groups)

    def started(self) -> list[_Actor]:
        """The actors, those that are missing started."""
        while len(self.actors) < self.workers:
            self.actors.append(_Actor(self._start()))
        return self.actors

    def replace(self, actor: _Actor) -> None:
        """Another actor in the place of one that is dead."""
        self.ray.kill(actor.handle)
        actor.handle, actor.units = self._start(), []

    def device_name(self) -> str:
        """What the actors run on, as people call it."""
        names = self.ray.get([actor.handle.name.remote() for actor in self.started()])
        return " + ".join(f"{names.count(name)} x {name} (Ray)" for name in sorted(set(names)))

    def forget(self, group: int) -> None:
        """Let all actors go of a pass."""
        for actor in self.actors:
            actor.handle.forget.remote(group)

    def _start(self) -> Any:
        needs = {"num_gpus": 1, "num_cpus": 0} if self.device == "cuda" else {"num_cpus": self._options.cpus}
        # Replaced by hand: what it was given has to be given to another.
        remote = self.ray.remote(Worker).options(max_restarts=0, max_concurrency=1, **needs)
        return remote.remote(self.device, self._options.cpus, self._prepare)


class RayGroup(Generic[Asked, Found]):
    """A pass on all actors of a pool; used as `resources.scoring.devices.WorkerGroup` is.

    Args:
        pool: the actors.
        make: a module's function that makes the pass of a spec on a device.
        spec: what the pass is loaded from, as plain data; folders that it names must be reachable from every node.
    """

    def __init__(self, pool: RayPool, make: Callable[[Any, str], Any], spec: Any) -> None:
        self._pool, self._make, self._spec = pool, make, spec
        self._ray = pool.ray
        self._group = pool.next_group()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.forget(self._group)

    def stream(
        self, samples: Sequence[Sample], request: Asked, progress: Progress | None = None
    ) -> Iterator[list[Found]]:
        """Measure samples on all actors; yields units as they are ready.

        When the caller stops early or an error arises, the actors are ended: nothing is measured that nobody takes.

        Raises:
            RayError: workers died over the same samples.
        """
        units, finished = units_of(samples, self._pool.workers), False
        try:
            for actor in self._pool.started():
                self._give(actor, units, request)
            while flying := {ref: actor for actor in self._pool.actors for ref, _ in actor.units}:
                ((ref, *_), _) = self._ray.wait(list(flying), num_returns=1)
                results = self._take(flying[ref], ref, units, request)
                if results:
                    if progress is not None:
                        progress(len(results))
                    yield results
            finished = True
        finally:
            if not finished:
                self._pool.close()

    def _give(self, actor: _Actor, units: deque[Unit], request: Asked) -> None:
        """Let an actor have the next units, as many as it may hold."""
        while units and len(actor.units) < IN_FLIGHT:
            unit = units.popleft()
            ref = actor.handle.measure.remote(self._group, self._make, self._spec, unit.samples, request)
            actor.units.append((ref, unit))

    def _take(self, actor: _Actor, ref: Any, units: deque[Unit], request: Asked) -> list[Found]:
        """The results of a unit that is done, in their places; nothing if its actor died: then it is given again."""
        lost = self._ray.exceptions
        try:
            results: list[Found] = self._ray.get(ref)
        except (lost.RayActorError, lost.WorkerCrashedError, lost.NodeDiedError, lost.ObjectLostError) as error:
            self._again(actor, units, request, error)
            return []
        except lost.RayTaskError as error:
            raise _plain(error) from error
        unit = next(unit for known, unit in actor.units if known == ref)
        actor.units = [pair for pair in actor.units if pair[0] != ref]
        self._give(actor, units, request)
        for result in results:
            result.position = unit.positions[result.position]
        return results

    def _again(self, actor: _Actor, units: deque[Unit], request: Asked, error: Exception) -> None:
        """Replace an actor that died; what it held comes first again, and what it was at counts a death."""
        held = [unit for _, unit in actor.units]
        held[0].deaths += 1
        if held[0].deaths >= TRIES:
            raise RayError(
                f"{held[0].deaths} Ray workers died while they loaded the model or measured the {len(held[0].samples)} "
                f"samples from {held[0].samples[0].sample_id} on ({in_a_line(error)}); is a node out of memory?"
            ) from error
        self._pool.replace(actor)
        units.extendleft(reversed(held))
        self._give(actor, units, request)


def _connected(address: str) -> Any:
    """The module ray, connected to a cluster.

    Raises:
        RayError: it is not installed, or there is no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise RayError(
            f"engine.kind: ray needs the extra `ray` ({error}): pip install 'curation-assets[ray]'"
        ) from error
    if ray.is_initialized():
        return ray
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise RayError(
            f"there is no Ray cluster at {address} ({in_a_line(error)}): start one with `ray start --head`, correct "
            "engine.address, or use engine.address: local"
        ) from error
    return ray


def _plain(error: Any) -> Exception:
    """What a worker raised: an error that names its mend as it is, anything else with what led to it."""
    from resources.scoring.errors import ScoringError  # noqa: PLC0415

    cause = error.cause
    if isinstance(cause, ScoringError):
        return type(cause)(*cause.args)
    return ScoringError(f"a Ray worker failed:\n{error}")
