"""Passes on a Ray cluster: long-lived actors that load a model once; who is free takes the next unit of even work.

A pool of actors serves all passes of a run: an actor loads what it is asked for and lets go of it when the pass ends.
What an actor gives does not depend on how many others there are; one that dies, or whose node does, is replaced where
Ray finds room, and what it was given is measured again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Self

from curation_resources.errors import UserError, in_a_line
from curation_resources.scoring.units import TRIES, Source, Tag, Unit, UnitQueue

IN_FLIGHT = 2
"""Units that an actor holds: one that it measures and one that waits there, so that it is never idle."""

PATIENCE = 60.0
"""Seconds without a word after which it is said that there is no room in the cluster."""

CONNECTIONS = 3
"""So often a cluster is asked for a connection by Ray's client."""

CONNECTION_PAUSE = 5.0
"""Seconds between two of them."""

MOST_STILLBORN = 3
"""So many workers in a row may die before they have said a word."""

logger = logging.getLogger("curation")


class RayError(UserError):
    """A Ray cluster cannot be used, or its workers died again and again."""


@dataclass(frozen=True)
class RayOptions:
    """Which cluster, and what of it.

    Attributes:
        address: of the cluster: `auto` finds the one of this machine, `local` starts one for this process, or
            `ray://HOST:PORT`, or `HOST:PORT`.
        workers: actors, those that there is no room for yet included; None: one a GPU that is there, or where there is
            none one for every `cpus` CPUs.
        cpus: CPUs of an actor without a GPU, which are its threads.
        gpus: whether actors take a GPU each; None: if the cluster has any now.
    """

    address: str = "auto"
    workers: int | None = None
    cpus: int = 1
    gpus: bool | None = None


class Worker:
    """What an actor is: passes that it has loaded, by the number of their group."""

    def __init__(self, device: str, threads: int, prepare: Callable[[], None] | None) -> None:
        self._device, self._prepare = device, prepare
        # Before torch is loaded, which a pass does.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self._passes: dict[int, Any] = {}

    def measure(
        self, group: int, make: Callable[[Any, str], Any], spec: Any, payload: Any, asked: Any, again: bool
    ) -> Any:
        """What a pass gives of a unit; the pass is loaded first if it is not there."""
        if group not in self._passes:
            if self._prepare is not None:
                self._prepare()
            self._passes[group] = make(spec, self._device)
        return self._passes[group].measure(payload, asked, again)

    def forget(self, group: int) -> None:
        """Let go of a pass."""
        self._passes.pop(group, None)

    def who(self) -> tuple[int, str]:
        """Its process on its node, and what it runs on, as people call it."""
        from curation_resources.scoring.devices import device_name  # noqa: PLC0415

        return os.getpid(), device_name(self._device)


@dataclass(eq=False)
class _Actor:
    """An actor, and what it was given, in order: the first is what it is at.

    Attributes:
        handle: Ray's.
        who: what will say who it is, once there is room for it.
        name: what it runs on; None: there is no room for it yet, and it is given nothing.
        process: its process on its node.
        units: what it was given, with Ray's word for each.
    """

    handle: Any
    who: Any
    name: str | None = None
    process: int | None = None
    units: list[tuple[Any, Unit[Any]]] = field(default_factory=list)


class RayPool:
    """Actors of a cluster; use it in a `with` block: they end with it.

    Args:
        options: which cluster, and what of it.
        prepare: what every actor calls before it loads a model.

    Raises:
        RayError: ray is not installed, or there is no such cluster.
    """

    def __init__(self, options: RayOptions, prepare: Callable[[], None] | None = None) -> None:
        self._options, self._prepare = options, prepare
        self.ray = _connected(options.address)
        resources = self.ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        on_gpus = options.gpus if options.gpus is not None else gpus > 0
        self.device = "cuda" if on_gpus else "cpu"
        room = gpus if on_gpus else cpus // options.cpus
        self.workers = options.workers or max(1, room)
        if self.workers > room:
            # Workers that wait are what an autoscaler adds nodes for.
            logger.warning(
                "the Ray cluster at %s has room for %d of %d workers (%d GPUs, %d CPUs): the others wait for nodes",
                options.address,
                room,
                self.workers,
                gpus,
                cpus,
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

    @property
    def placed(self) -> int:
        """How many actors have a place now."""
        return sum(actor.name is not None for actor in self.actors)

    def lost(self) -> tuple[type[Exception], ...]:
        """What Ray raises of an actor that is gone: it, its process, its node, what it gave, or for want of memory."""
        known = self.ray.exceptions
        return (
            known.RayActorError,
            known.ActorUnschedulableError,
            known.WorkerCrashedError,
            known.NodeDiedError,
            known.ObjectLostError,
            known.OutOfMemoryError,
        )

    def next_group(self) -> int:
        """A number that no pass has yet."""
        return next(self._groups)

    def started(self) -> list[_Actor]:
        """The actors, those that are missing started."""
        while len(self.actors) < self.workers:
            self.actors.append(self._start())
        return self.actors

    def replace(self, actor: _Actor) -> None:
        """Another actor in the place of one that is dead; what that held is to be given again."""
        self.ray.kill(actor.handle)
        self.actors[self.actors.index(actor)] = self._start()

    def device_name(self) -> str:
        """What the actors run on, as people call it; those that there is no room for run on nothing."""
        names = [actor.name for actor in self.actors if actor.name is not None]
        return " + ".join(f"{names.count(name)} x {name} (Ray)" for name in sorted(set(names)))

    def forget(self, group: int) -> None:
        """Let all actors go of a pass."""
        for actor in self.actors:
            actor.handle.forget.remote(group)

    def _start(self) -> _Actor:
        needs = {"num_gpus": 1, "num_cpus": 0} if self.device == "cuda" else {"num_cpus": self._options.cpus}
        # Replaced by hand: what it was given has to be given to another.
        remote = self.ray.remote(Worker).options(max_restarts=0, max_concurrency=1, **needs)
        handle = remote.remote(self.device, self._options.cpus, self._prepare)
        # Asked first: behind units the answer would wait for them.
        return _Actor(handle, handle.who.remote())


class RayGroup:
    """A pass on all actors of a pool; use it in a `with` block: the actors let go of it then.

    Args:
        pool: the actors.
        make: a module's function that makes the pass of a spec on a device. The pass measures a unit with
            `measure(payload, asked, again)`; `again` says that another worker may have begun with it.
        spec: what the pass is loaded from, as plain data.
    """

    def __init__(self, pool: RayPool, make: Callable[[Any, str], Any], spec: Any) -> None:
        self._pool, self._make, self._spec = pool, make, spec
        self._ray = pool.ray
        self._group = pool.next_group()
        self._stillborn = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.forget(self._group)

    def stream(self, sources: Iterable[Source[Tag]]) -> Generator[tuple[Unit[Tag], Any], None, None]:
        """Measure samples on all actors; yields each unit with what the pass gave of it, as they are ready.

        When the caller stops early or an error arises, the actors are ended: nothing is measured that nobody takes.

        Raises:
            RayError: workers died over the same samples.
        """
        units, finished = UnitQueue(sources, self._pool.workers), False
        try:
            for actor in self._pool.started():
                self._give(actor, units)
            while waited := self._waited(units):
                ready, _ = self._ray.wait(list(waited), num_returns=1, timeout=PATIENCE)
                if not ready:
                    self._tell_of_no_room()
                for ref in ready:
                    actor = waited[ref]
                    if ref == actor.who:
                        self._meet(actor, units)
                    elif (done := self._take(actor, ref, units)) is not None:
                        yield done
            finished = True
        finally:
            if not finished:
                self._pool.close()

    def _waited(self, units: UnitQueue[Any]) -> dict[Any, _Actor]:
        """What is waited for: units that are under way, and as long as there are others, actors without room."""
        actors = self._pool.actors
        waited = {ref: actor for actor in actors for ref, _ in actor.units}
        if units.left():
            waited |= {actor.who: actor for actor in actors if actor.name is None}
        return waited

    def _tell_of_no_room(self) -> None:
        if not any(actor.units for actor in self._pool.actors):
            logger.warning(
                "no worker has a place in the Ray cluster: waiting for room (`ray status` says what is full)"
            )

    def _meet(self, actor: _Actor, units: UnitQueue[Any]) -> None:
        """An actor that there is room for now says who it is, and is given its first units."""
        try:
            actor.process, actor.name = self._ray.get(actor.who)
        except self._ray.exceptions.RayTaskError as error:
            raise _plain(error) from error
        except self._pool.lost() as error:
            self._stillborn += 1
            if self._stillborn >= MOST_STILLBORN:
                raise RayError(
                    f"{self._stillborn} Ray workers died as they started ({in_a_line(error)}): have this package, with "
                    "the extra `ray`, on every node"
                ) from error
            self._pool.replace(actor)
            return
        self._stillborn = 0
        self._give(actor, units)

    def _give(self, actor: _Actor, units: UnitQueue[Any]) -> None:
        """Let an actor have the next units, as many as it may hold; none before there is room for it."""
        while actor.name is not None and len(actor.units) < IN_FLIGHT and (unit := units.next()) is not None:
            payload, again = unit.source.payload(unit.positions), unit.given > 0
            unit.given += 1
            asked = unit.source.asked
            ref = actor.handle.measure.remote(self._group, self._make, self._spec, payload, asked, again)
            actor.units.append((ref, unit))

    def _take(self, actor: _Actor, ref: Any, units: UnitQueue[Any]) -> tuple[Unit[Any], Any] | None:
        """A unit that is done, with its result; None if its actor died: then it is given again."""
        try:
            result = self._ray.get(ref)
        except self._pool.lost() as error:
            self._again(actor, units, error)
            return None
        except self._ray.exceptions.RayTaskError as error:
            raise _plain(error) from error
        unit = next(unit for known, unit in actor.units if known == ref)
        actor.units = [pair for pair in actor.units if pair[0] != ref]
        self._give(actor, units)
        return unit, result

    def _again(self, actor: _Actor, units: UnitQueue[Any], error: Exception) -> None:
        """Replace an actor that died; what it held comes first again, and what it was at counts a death."""
        held = [unit for _, unit in actor.units]
        held[0].deaths += 1
        if held[0].deaths >= TRIES:
            raise RayError(
                f"{held[0].deaths} Ray workers died while they loaded the model or measured {len(held[0].positions)} "
                f"samples of {held[0].source.tag} ({in_a_line(error)}); is a node out of memory?"
            ) from error
        units.again(held)
        self._pool.replace(actor)
        # There may be no room for another; who has nothing to do takes over.
        for other in self._pool.actors:
            self._give(other, units)


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
    # A busy head may fail to serve another client at first.
    tries = CONNECTIONS if address.startswith("ray://") else 1
    for left in reversed(range(tries)):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
            break
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            if not left:
                raise RayError(
                    f"there is no Ray cluster at {address} ({in_a_line(error)}): start one with `ray start --head`, "
                    "correct engine.address, or use engine.address: local"
                ) from error
            time.sleep(CONNECTION_PAUSE)
    return ray


def _plain(error: Any) -> Exception:
    """What a worker raised: an error that names its mend as it is, anything else with what led to it."""
    from curation_resources.scoring.errors import ScoringError  # noqa: PLC0415

    cause = error.cause
    if isinstance(cause, (ScoringError, UserError)):
        return type(cause)(*cause.args)
    return ScoringError(f"a Ray worker failed:\n{error}")
