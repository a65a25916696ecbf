"""Passes on a Ray cluster: long-lived actors load a model once, and idle actors take the next unit of work.

All passes of a run share one pool of actors: an actor loads a model on request and frees it when the pass ends.
Results do not depend on the number of actors. An actor that dies, with or without its node, is replaced where Ray finds
room, and its units are measured again.
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
"""Units that an actor holds: one in progress and one queued, so that it is never idle."""

PATIENCE = 60.0
"""Seconds without a result before a warning that the cluster has no room."""

CONNECTIONS = 3
"""Connection attempts through Ray's client."""

CONNECTION_PAUSE = 5.0
"""Seconds between two connection attempts."""

MOST_STILLBORN = 3
"""Workers that may die in a row before they have started up."""

logger = logging.getLogger("curation")


class RayError(UserError):
    """A Ray cluster cannot be used, or its workers died repeatedly."""


@dataclass(frozen=True)
class RayOptions:
    """The cluster to use, and the resources to take from it.

    Attributes:
        address: of the cluster: `auto` finds the one of this machine, `local` starts one for this process, or
            `ray://HOST:PORT`, or `HOST:PORT`.
        workers: number of actors, including those that wait for room; None: one per available GPU, or without GPUs one
            for every `cpus` CPUs.
        cpus: CPUs, and thus threads, of an actor without a GPU.
        gpus: whether each actor takes a GPU; None: if the cluster has any now.
    """

    address: str = "auto"
    workers: int | None = None
    cpus: int = 1
    gpus: bool | None = None


class Worker:
    """The class of actors: holds loaded passes by the number of their group."""

    def __init__(self, device: str, threads: int, prepare: Callable[[], None] | None) -> None:
        self._device, self._prepare = device, prepare
        # Set this before a pass loads torch.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self._passes: dict[int, Any] = {}

    def measure(
        self, group: int, make: Callable[[Any, str], Any], spec: Any, payload: Any, asked: Any, again: bool
    ) -> Any:
        """Return a pass's result for a unit; loads the pass on first use."""
        if group not in self._passes:
            if self._prepare is not None:
                self._prepare()
            self._passes[group] = make(spec, self._device)
        return self._passes[group].measure(payload, asked, again)

    def forget(self, group: int) -> None:
        """Free a pass."""
        self._passes.pop(group, None)

    def who(self) -> tuple[int, str]:
        """Return the process id on the node, and the device's human-readable name."""
        from curation_resources.scoring.devices import device_name  # noqa: PLC0415

        return os.getpid(), device_name(self._device)


@dataclass(eq=False)
class _Actor:
    """An actor and its queue of units; the first unit is in progress.

    Attributes:
        handle: Ray's actor handle.
        who: reference to the result of `Worker.who`, which is ready once the actor is placed.
        name: device name; None: the actor is not placed yet and gets no units.
        process: process id on its node.
        units: assigned units, with the object reference of each result.
    """

    handle: Any
    who: Any
    name: str | None = None
    process: int | None = None
    units: list[tuple[Any, Unit[Any]]] = field(default_factory=list)


class RayPool:
    """Actors of a cluster. Use it in a `with` block, which ends them.

    Args:
        options: the cluster, and the resources to take from it.
        prepare: called by every actor before it loads a model.

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
            # Waiting workers make an autoscaler add nodes.
            logger.warning(
                "the Ray cluster at %s has room for %d of %d workers (%d GPUs, %d CPUs); the others wait for nodes",
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
        """Kill the actors; their current work is discarded."""
        for actor in self.actors:
            self.ray.kill(actor.handle)
        self.actors = []

    @property
    def placed(self) -> int:
        """The number of actors that are placed now."""
        return sum(actor.name is not None for actor in self.actors)

    def lost(self) -> tuple[type[Exception], ...]:
        """Return Ray's exceptions for a lost actor, process, node or result, and for lack of memory."""
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
        """Return a group number for a new pass."""
        return next(self._groups)

    def started(self) -> list[_Actor]:
        """Return the actors, after starting missing ones."""
        while len(self.actors) < self.workers:
            self.actors.append(self._start())
        return self.actors

    def replace(self, actor: _Actor) -> None:
        """Replace a dead actor by a new one; the caller reassigns its units."""
        self.ray.kill(actor.handle)
        self.actors[self.actors.index(actor)] = self._start()

    def device_name(self) -> str:
        """Return a human-readable name of the devices of all placed actors."""
        names = [actor.name for actor in self.actors if actor.name is not None]
        return " + ".join(f"{names.count(name)} x {name} (Ray)" for name in sorted(set(names)))

    def forget(self, group: int) -> None:
        """Free a pass on all actors."""
        for actor in self.actors:
            actor.handle.forget.remote(group)

    def _start(self) -> _Actor:
        needs = {"num_gpus": 1, "num_cpus": 0} if self.device == "cuda" else {"num_cpus": self._options.cpus}
        # Restarts are ours, because a dead actor's units must be reassigned.
        remote = self.ray.remote(Worker).options(max_restarts=0, max_concurrency=1, **needs)
        handle = remote.remote(self.device, self._options.cpus, self._prepare)
        # Called first: queued behind units, the answer would wait for them.
        return _Actor(handle, handle.who.remote())


class RayGroup:
    """A pass on all actors of a pool. Use it in a `with` block, which frees the pass on the actors.

    Args:
        pool: the actors.
        make: an importable function that makes the pass of a spec on a device. The pass measures a unit with
            `measure(payload, asked, again)`; `again` means that another worker may have started the unit.
        spec: plain data that the pass is loaded from.
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
        """Measure samples on all actors; yield each unit with its result as soon as it is ready.

        If the caller stops early or an error occurs, the actors are killed, so no unwanted work continues.

        Raises:
            RayError: workers died repeatedly over the same samples.
        """
        units, finished = UnitQueue(sources, self._pool.workers), False
        try:
            for actor in self._pool.started():
                self._assign(actor, units)
            while waited := self._awaited(units):
                ready, _ = self._ray.wait(list(waited), num_returns=1, timeout=PATIENCE)
                if not ready:
                    self._warn_of_no_room()
                for ref in ready:
                    actor = waited[ref]
                    if ref == actor.who:
                        self._register(actor, units)
                    elif (done := self._collect(actor, ref, units)) is not None:
                        yield done
            finished = True
        finally:
            if not finished:
                self._pool.close()

    def _awaited(self, units: UnitQueue[Any]) -> dict[Any, _Actor]:
        """Return the references to wait for: results of assigned units and, while units are left, unplaced actors."""
        actors = self._pool.actors
        waited = {ref: actor for actor in actors for ref, _ in actor.units}
        if units.left():
            waited |= {actor.who: actor for actor in actors if actor.name is None}
        return waited

    def _warn_of_no_room(self) -> None:
        if not any(actor.units for actor in self._pool.actors):
            logger.warning("no worker is placed in the Ray cluster; waiting for room (`ray status` shows its usage)")

    def _register(self, actor: _Actor, units: UnitQueue[Any]) -> None:
        """Register an actor that has just been placed, and assign its first units."""
        try:
            actor.process, actor.name = self._ray.get(actor.who)
        except self._ray.exceptions.RayTaskError as error:
            raise _original_error(error) from error
        except self._pool.lost() as error:
            self._stillborn += 1
            if self._stillborn >= MOST_STILLBORN:
                raise RayError(
                    f"{self._stillborn} Ray workers died at startup ({in_a_line(error)}). Install this package, with "
                    "the extra `ray`, on every node."
                ) from error
            self._pool.replace(actor)
            return
        self._stillborn = 0
        self._assign(actor, units)

    def _assign(self, actor: _Actor, units: UnitQueue[Any]) -> None:
        """Assign the next units to an actor, up to its limit; none before it is placed."""
        while actor.name is not None and len(actor.units) < IN_FLIGHT and (unit := units.next()) is not None:
            payload, again = unit.source.payload(unit.positions), unit.given > 0
            unit.given += 1
            asked = unit.source.asked
            ref = actor.handle.measure.remote(self._group, self._make, self._spec, payload, asked, again)
            actor.units.append((ref, unit))

    def _collect(self, actor: _Actor, ref: Any, units: UnitQueue[Any]) -> tuple[Unit[Any], Any] | None:
        """Return a finished unit with its result; None if its actor died, and the unit is assigned again."""
        try:
            result = self._ray.get(ref)
        except self._pool.lost() as error:
            self._reassign(actor, units, error)
            return None
        except self._ray.exceptions.RayTaskError as error:
            raise _original_error(error) from error
        unit = next(unit for known, unit in actor.units if known == ref)
        actor.units = [pair for pair in actor.units if pair[0] != ref]
        self._assign(actor, units)
        return unit, result

    def _reassign(self, actor: _Actor, units: UnitQueue[Any], error: Exception) -> None:
        """Replace a dead actor; its units go to the front of the queue, and the one in progress counts a death."""
        held = [unit for _, unit in actor.units]
        held[0].deaths += 1
        if held[0].deaths >= TRIES:
            raise RayError(
                f"{held[0].deaths} Ray workers died while they loaded the model or measured {len(held[0].positions)} "
                f"samples of {held[0].source.tag} ({in_a_line(error)}). Check whether a node is out of memory."
            ) from error
        units.again(held)
        self._pool.replace(actor)
        # There may be no room for a replacement, so idle actors take over.
        for other in self._pool.actors:
            self._assign(other, units)


def _connected(address: str) -> Any:
    """Connect to a cluster and return the module ray.

    Raises:
        RayError: ray is not installed, or there is no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise RayError(
            f"engine.kind: ray needs the extra `ray` ({error}). Run pip install 'curation-assets[ray]'"
        ) from error
    if ray.is_initialized():
        return ray
    # A busy head node may reject a new client at first.
    tries = CONNECTIONS if address.startswith("ray://") else 1
    for left in reversed(range(tries)):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
            break
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            if not left:
                raise RayError(
                    f"there is no Ray cluster at {address} ({in_a_line(error)}). Start one with `ray start --head`, "
                    "correct engine.address, or use engine.address: local."
                ) from error
            time.sleep(CONNECTION_PAUSE)
    return ray


def _original_error(error: Any) -> Exception:
    """Return a worker's exception: errors with a fix unchanged, anything else with the worker's traceback."""
    from curation_resources.scoring.errors import ScoringError  # noqa: PLC0415

    cause = error.cause
    if isinstance(cause, (ScoringError, UserError)):
        return type(cause)(*cause.args)
    return ScoringError(f"a Ray worker failed:\n{error}")
