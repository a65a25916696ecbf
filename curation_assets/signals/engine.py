"""Engines that measure samples: this machine's devices (or a judge), or the workers of a Ray cluster.

An engine consumes the missing samples shard by shard and yields manifest rows; by then the data is in the warehouse.
Workers of a cluster write to the warehouse themselves, so only texts pass through the run on their way to them.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Protocol, Self

import polars as pl

from curation_assets.config.settings import Target
from curation_assets.corpus.samples import samples_of
from curation_assets.signals.parts import Done, Parts, tokens_run
from curation_assets.signals.requests import request_for
from curation_assets.signals.scorers import make_scorer, model_scorer
from curation_assets.signals.store import MeasuringError, SignalStore
from curation_assets.tables.signals import SignalName
from curation_assets.workspace.workspace import Workspace
from curation_resources.quiet import quieten_transformers
from curation_resources.scoring.units import IMAGE_CHARACTERS, Progress, Source

if TYPE_CHECKING:
    from curation_resources.models.judge import JudgeScorer
    from curation_resources.models.ray_engine import RayGroup, RayPool
    from curation_resources.models.scorer import Scorer

Stores = Mapping[SignalName, SignalStore]


@dataclass(frozen=True, eq=False)
class Lack:
    """Samples of a shard that lack the same signals.

    Attributes:
        shard: the shard, or validation set.
        signals: the missing signals.
        rows: rows of `raw_corpus`, one per sample.
        steps: rows of `segmented_steps`, if segments are measured.
        progress: called with the number of samples completed since the last call.
    """

    shard: str
    signals: frozenset[SignalName]
    rows: pl.DataFrame
    steps: pl.DataFrame | None
    progress: Progress

    def __str__(self) -> str:
        return self.shard


class Engine(Protocol):
    """An engine that measures; use it in a `with` block."""

    @property
    def device_count(self) -> int:
        """Number of devices in use."""

    def device_name(self) -> str:
        """Return the human-readable name of the device."""

    def measure(self, lacks: Iterable[Lack]) -> Generator[tuple[Lack, Done], None, None]:
        """Measure missing signals. Closing the generator early stops the workers and keeps what they have measured."""


class LocalEngine:
    """This machine's devices, or a judge queried from this machine.

    Args:
        workspace: the configuration.
        target: the target to measure with.
        stores: the store of each signal.
        scorer: the scorer that measures.
    """

    def __init__(self, workspace: Workspace, target: Target, stores: Stores, scorer: Scorer | JudgeScorer) -> None:
        self._workspace, self._target, self._stores, self._scorer = workspace, target, stores, scorer

    @property
    def device_count(self) -> int:
        """See `Engine`."""
        return self._scorer.device_count

    def device_name(self) -> str:
        """See `Engine`."""
        return self._scorer.device_name()

    def measure(self, lacks: Iterable[Lack]) -> Generator[tuple[Lack, Done], None, None]:
        """See `Engine`."""
        for lack in lacks:
            yield from self._one(lack)

    def _one(self, lack: Lack) -> Generator[tuple[Lack, Done], None, None]:
        parts = Parts(_some(self._stores, lack.signals), self._workspace.settings.engine.part_seconds)
        try:
            inputs = samples_of(self._workspace, lack.rows, lack.steps)
            request = request_for(self._target, lack.signals)
            with closing(self._scorer.measure(inputs, request, lack.progress)) as stream:
                for results in stream:
                    tokens = sum(tokens_run(result) for result in results)
                    yield lack, Done(len(results), tokens, parts.add(results))
        finally:
            # Keep what has been measured, even when interrupted.
            parts.commit()
        yield lack, Done(0, 0, True)


@dataclass(frozen=True)
class RemoteTarget:
    """The specification from which a cluster worker builds its pass: plain data, read again on its node.

    Attributes:
        workspace: the configuration.
        target: the target to measure with.
        folders: by signal, the folder that the run stores it in.
        place: where these folders are (`SignalStore.of`).
    """

    workspace: Workspace
    target: Target
    folders: Mapping[SignalName, str]
    place: str = ""


@dataclass(frozen=True)
class RemotePart:
    """The part of a unit sent to a worker: rows of `raw_corpus` and `segmented_steps`, and the missing signals."""

    rows: pl.DataFrame
    steps: pl.DataFrame | None
    signals: frozenset[SignalName]


class RemoteWorker:
    """Measures on a worker: its node loads the model and writes the results directly to the warehouse.

    Raises:
        MeasuringError: the node's results would differ from what the run stores, because it has other weights or
            another version of this package.
    """

    def __init__(self, spec: RemoteTarget, device: str) -> None:
        self._workspace, self._target = spec.workspace, spec.target
        self._by = f"{socket.gethostname()} {uuid.uuid4().hex}"
        self._stores = stores_of(self._workspace, self._target, spec.folders, spec.place)
        for signal, store in self._stores.items():
            if store.folder != spec.folders[signal]:
                raise MeasuringError(
                    f"{socket.gethostname()} would measure {signal} of target {self._target.name} as {store.folder}, "
                    f"but the run expects {spec.folders[signal]}. Install the same model and the same version of "
                    "curation-assets on every node."
                )
        self._scorer = model_scorer(self._workspace, self._target, device)

    def measure(self, part: RemotePart, _asked: object, again: bool) -> Done:
        """Measure samples and commit the results; see `curation_resources.models.ray_engine.RayGroup`."""
        stores, rows = _some(self._stores, part.signals), part.rows
        self._see_images(rows)
        if again:
            # Skip what the previous worker has already written.
            missing = set().union(*(store.missing(rows["sample_id"]) for store in stores.values()))
            rows = rows.filter(pl.col("sample_id").is_in(missing))
        parts = Parts(stores, self._workspace.settings.engine.part_seconds)
        tokens = 0
        request = request_for(self._target, part.signals)
        for results in self._scorer.measure(samples_of(self._workspace, rows, part.steps), request):
            tokens += sum(tokens_run(result) for result in results)
            parts.add(results)
        parts.commit()
        return Done(len(part.rows), tokens, True, tuple(parts.written), self._by)

    def _see_images(self, rows: pl.DataFrame) -> None:
        """Check that this node has the folders of images: otherwise every image would be reported as missing."""
        for shard in rows.filter(pl.col("images").list.len() > 0)["shard"].unique():
            folder = self._workspace.image_root(shard)
            if not folder.is_dir():
                raise MeasuringError(
                    f"{socket.gethostname()} cannot find {folder}, which holds images of {shard}. Mount the landing "
                    "area (and the folders of validation sets) at the same path on every node, or use S3."
                )


class RayEngine:
    """Workers of a Ray cluster, which write their own results.

    Args:
        workspace: the configuration.
        target: the target to measure with.
        stores: the store of each signal.
        place: where the stores are (`SignalStore.of`).
    """

    def __init__(self, workspace: Workspace, target: Target, stores: Stores, place: str = "") -> None:
        self._workspace, self._stores = workspace, stores
        folders = {signal: store.folder for signal, store in stores.items()}
        # A copy without the caches and connections opened here.
        self._spec = RemoteTarget(replace(workspace), target, folders, place)
        self._seen: set[str] = set()
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @cached_property
    def _pool(self) -> RayPool:
        from curation_resources.models.ray_engine import RayOptions, RayPool  # noqa: PLC0415

        engine = self._workspace.settings.engine
        # On a cluster that scales on demand there may be no GPU yet.
        gpus = None if engine.device == "auto" else engine.device != "cpu"
        options = RayOptions(engine.address, engine.workers, engine.cpus_per_worker, gpus)
        return self._open.enter_context(RayPool(options, quieten_transformers))

    @cached_property
    def _group(self) -> RayGroup:
        """The pass on all workers, which stays loaded."""
        from curation_resources.models.ray_engine import RayGroup  # noqa: PLC0415

        return self._open.enter_context(RayGroup(self._pool, RemoteWorker, self._spec))

    @property
    def device_count(self) -> int:
        """See `Engine`; workers still waiting for resources are not counted."""
        return max(1, self._pool.placed)

    def device_name(self) -> str:
        """See `Engine`."""
        return self._pool.device_name()

    def measure(self, lacks: Iterable[Lack]) -> Generator[tuple[Lack, Done], None, None]:
        """See `Engine`.

        Raises:
            MeasuringError: a node writes to a different warehouse than the one that the run reads.
        """
        sources = (Source(lack, work_of_rows(lack.rows), partial(_part, lack)) for lack in lacks)
        with closing(self._group.stream(sources)) as stream:
            for unit, done in stream:
                lack = unit.source.tag
                self._look(done, lack, unit.positions)
                lack.progress(done.samples)
                yield lack, done

    def _look(self, done: Done, lack: Lack, positions: Sequence[int]) -> None:
        """Check that the first part that each worker reports is visible from here."""
        if done.by in self._seen or not done.parts:
            return
        there = self._workspace.warehouse.storage.exists(done.parts[0])
        if not there:
            # Another process may have merged it into one part with others.
            ids = lack.rows["sample_id"][list(positions)]
            there = not any(self._stores[signal].missing(ids) for signal in lack.signals)
        if not there:
            raise MeasuringError(
                f"a worker on {done.by.split()[0]} wrote {done.parts[0]}, which is not visible in "
                f"{self._workspace.warehouse.storage.place} from here. Use a warehouse in S3, or a folder that is "
                "mounted at the same path on all nodes."
            )
        self._seen.add(done.by)


@contextmanager
def open_engine(workspace: Workspace, target: Target, stores: Stores, place: str = "") -> Iterator[Engine]:
    """Open the engine that the configuration names, for a target; a judge is always queried from this machine.

    `place` is where the stores are (`SignalStore.of`).
    """
    if workspace.settings.engine.kind == "ray" and target.endpoint is None:
        with RayEngine(workspace, target, stores, place) as engine:
            yield engine
        return
    scorer: AbstractContextManager[Scorer | JudgeScorer] = make_scorer(workspace, target)
    with scorer as opened:
        yield LocalEngine(workspace, target, stores, opened)


def stores_of(
    workspace: Workspace, target: Target, signals: Iterable[SignalName], place: str = ""
) -> dict[SignalName, SignalStore]:
    """Return the stores of a target's signals; see `SignalStore.of`."""
    return {signal: SignalStore.of(workspace, target, signal, place) for signal in signals}


def work_of_rows(rows: pl.DataFrame) -> list[int]:
    """Return the approximate work of each row of `raw_corpus`; see `curation_resources.scoring.units.work_of`."""
    images = pl.col("images").list.len().fill_null(0) * IMAGE_CHARACTERS
    texts = pl.col("messages").str.len_chars() + pl.col("response").str.len_chars()
    return rows.select((texts + images).cast(pl.Int64)).to_series().to_list()


def _part(lack: Lack, positions: Sequence[int]) -> RemotePart:
    rows = lack.rows[list(positions)]
    steps = (
        None
        if lack.steps is None
        else lack.steps.join(rows.select("sample_id"), on="sample_id", how="semi", maintain_order="left")
    )
    return RemotePart(rows, steps, lack.signals)


def _some(stores: Stores, signals: frozenset[SignalName]) -> dict[SignalName, SignalStore]:
    """Return the stores of some signals, in their original order."""
    return {signal: store for signal, store in stores.items() if signal in signals}
