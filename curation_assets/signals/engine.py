"""Where samples are measured: by this machine's devices (or a judge), or by the workers of a Ray cluster.

An engine takes what shards lack, shard after shard, and gives manifest rows: the data is in the warehouse by then.
Workers of a cluster write it there themselves, so that nothing but texts on their way to them goes through the run.
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
from curation_assets.signals.catalog import request_for
from curation_assets.signals.parts import Done, Parts, tokens_run
from curation_assets.signals.scorers import make_scorer, model_scorer
from curation_assets.signals.store import MeasuringError, SignalStore
from curation_assets.workspace.workspace import Workspace
from curation_resources.quiet import quieten_transformers
from curation_resources.scoring.units import IMAGE_CHARACTERS, Progress, Source
from curation_resources.sections import SignalName

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
        signals: what they lack.
        rows: of `raw_corpus`, each sample once.
        steps: of `segmented_steps`, where segments are measured.
        progress: called with the number of samples that were done since the last call.
    """

    shard: str
    signals: frozenset[SignalName]
    rows: pl.DataFrame
    steps: pl.DataFrame | None
    progress: Progress

    def __str__(self) -> str:
        return self.shard


class Engine(Protocol):
    """What measures; use it in a `with` block."""

    @property
    def device_count(self) -> int:
        """On how many devices."""

    def device_name(self) -> str:
        """What it runs on, as people call it."""

    def measure(self, lacks: Iterable[Lack]) -> Generator[tuple[Lack, Done], None, None]:
        """Measure what samples lack; close it when it is not used up: what works on it ends, what is done is kept."""


class LocalEngine:
    """This machine's devices, or a judge that is asked from here.

    Args:
        workspace: the configuration.
        target: what is measured with.
        stores: where each signal is kept.
        scorer: what measures.
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
            # Also when interrupted: what has been measured is kept.
            parts.commit()
        yield lack, Done(0, 0, True)


@dataclass(frozen=True)
class RemoteTarget:
    """What a worker of a cluster makes its pass from: plain data, read anew on its node.

    Attributes:
        workspace: the configuration.
        target: what is measured with.
        folders: of each signal, where the run keeps it.
    """

    workspace: Workspace
    target: Target
    folders: Mapping[SignalName, str]


@dataclass(frozen=True)
class RemotePart:
    """What a worker is sent of a unit: rows of `raw_corpus` and of `segmented_steps`, and what they lack."""

    rows: pl.DataFrame
    steps: pl.DataFrame | None
    signals: frozenset[SignalName]


class RemoteWorker:
    """What measures on a worker: the model is loaded on its node, what it gives goes from there to the warehouse.

    Raises:
        MeasuringError: what the node measures would not be what the run keeps: it has other weights, or another version
            of this package.
    """

    def __init__(self, spec: RemoteTarget, device: str) -> None:
        self._workspace, self._target = spec.workspace, spec.target
        self._by = f"{socket.gethostname()} {uuid.uuid4().hex}"
        self._stores = {signal: SignalStore.of(self._workspace, self._target, signal) for signal in spec.folders}
        for signal, store in self._stores.items():
            if store.folder != spec.folders[signal]:
                raise MeasuringError(
                    f"{socket.gethostname()} would measure {signal} of target {self._target.name} as {store.folder}, "
                    f"the run wants {spec.folders[signal]}: have the same model and the same version of "
                    "curation-assets on every node"
                )
        self._scorer = model_scorer(self._workspace, self._target, device)

    def measure(self, part: RemotePart, _asked: object, again: bool) -> Done:
        """Measure samples and commit what is found; see `curation_resources.models.ray_engine.RayGroup`."""
        stores, rows = _some(self._stores, part.signals), part.rows
        self._see_images(rows)
        if again:
            # What the worker before wrote is not measured twice.
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
        """Folders that images lie in must be on this node: an image that is not there would be said to be missing."""
        for shard in rows.filter(pl.col("images").list.len() > 0)["shard"].unique():
            folder = self._workspace.image_root(shard)
            if not folder.is_dir():
                raise MeasuringError(
                    f"{socket.gethostname()} does not see {folder}, where images of {shard} lie: have the landing area "
                    "(and the folders of validation sets) in one place on every node, or in S3"
                )


class RayEngine:
    """Workers of a Ray cluster, which write what they measure.

    Args:
        workspace: the configuration.
        target: what is measured with.
        stores: where each signal is kept.
    """

    def __init__(self, workspace: Workspace, target: Target, stores: Stores) -> None:
        self._workspace, self._stores = workspace, stores
        folders = {signal: store.folder for signal, store in stores.items()}
        # Without what it has read and opened here.
        self._spec = RemoteTarget(replace(workspace), target, folders)
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
        # Where nodes come when they are asked for, there may be no GPU yet.
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
        """See `Engine`; those that wait for room are none."""
        return max(1, self._pool.placed)

    def device_name(self) -> str:
        """See `Engine`."""
        return self._pool.device_name()

    def measure(self, lacks: Iterable[Lack]) -> Generator[tuple[Lack, Done], None, None]:
        """See `Engine`.

        Raises:
            MeasuringError: a node does not write to the warehouse that the run reads.
        """
        sources = (Source(lack, work_of_rows(lack.rows), partial(_part, lack)) for lack in lacks)
        with closing(self._group.stream(sources)) as stream:
            for unit, done in stream:
                lack = unit.source.tag
                self._look(done, lack, unit.positions)
                lack.progress(done.samples)
                yield lack, done

    def _look(self, done: Done, lack: Lack, positions: Sequence[int]) -> None:
        """See that what a worker says it wrote is here, the first time that it says so."""
        if done.by in self._seen or not done.parts:
            return
        there = self._workspace.warehouse.storage.exists(done.parts[0])
        if not there:
            # Another process may have made one part of it and others.
            ids = lack.rows["sample_id"][list(positions)]
            there = not any(self._stores[signal].missing(ids) for signal in lack.signals)
        if not there:
            raise MeasuringError(
                f"a worker on {done.by.split()[0]} wrote {done.parts[0]}, which is not in "
                f"{self._workspace.warehouse.storage.place} as seen from here: name a warehouse in S3, or a folder "
                "that all nodes have mounted in one place"
            )
        self._seen.add(done.by)


@contextmanager
def open_engine(workspace: Workspace, target: Target, stores: Stores) -> Iterator[Engine]:
    """The engine that the configuration names, for a target; a judge is always asked from here."""
    if workspace.settings.engine.kind == "ray" and target.endpoint is None:
        with RayEngine(workspace, target, stores) as engine:
            yield engine
        return
    scorer: AbstractContextManager[Scorer | JudgeScorer] = make_scorer(workspace, target)
    with scorer as opened:
        yield LocalEngine(workspace, target, stores, opened)


def work_of_rows(rows: pl.DataFrame) -> list[int]:
    """About how much work each row of `raw_corpus` is: see `curation_resources.scoring.units.work_of`."""
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
    """Stores of some signals, in their order."""
    return {signal: store for signal, store in stores.items() if signal in signals}
