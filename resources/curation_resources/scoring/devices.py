"""Run the pass on one device in this process, or on several devices with one process each.

A worker process loads the model once and measures units of samples one after another; results do not depend on the
number of workers. A worker that dies is restarted, and its unit is measured again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, Self

import torch

from curation_resources.scoring.encoding import Encoder
from curation_resources.scoring.errors import ScoringError
from curation_resources.scoring.forward import ForwardPass, Progress
from curation_resources.scoring.loading import load_checkpoint
from curation_resources.scoring.samples import Request, Sample, SampleSignals
from curation_resources.scoring.spec import PassSpec
from curation_resources.scoring.units import TRIES, Asked, Found, Source, UnitQueue, work_of


class WorkerError(ScoringError):
    """Worker processes died repeatedly over the same samples."""


def device_name(device: str) -> str:
    """Return a device's human-readable name."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPU cores"


def make_pass(spec: PassSpec, device: str) -> ForwardPass:
    """Load the model onto one device of this process."""
    checkpoint = load_checkpoint(
        spec.model_folder,
        spec.adapter,
        device=device,
        dtype=spec.dtype,
        max_length=spec.max_length,
        trust_remote_code=spec.trust_remote_code,
        attention=spec.attention,
        compile_model=spec.compile_model,
    )
    encoder = Encoder(
        checkpoint.tokenizer,
        spec.template,
        checkpoint.max_length,
        processor=checkpoint.processor,
        vocabulary=checkpoint.vocabulary,
        limits=spec.images,
    )
    return ForwardPass(checkpoint, encoder, spec.batch_tokens, spec.head_memory)


@dataclass
class _Unit:
    """Samples that one worker measures together, and the number of workers that died over them."""

    samples: Sequence[Sample]
    positions: Sequence[int]
    deaths: int = 0


@dataclass
class _Worker:
    """A worker process, our end of its pipe, and the unit that it is measuring."""

    device: str
    process: SpawnProcess
    connection: Connection
    unit: _Unit | None = None

    def end(self) -> None:
        """Kill the process immediately; its unfinished unit is measured again."""
        self.connection.close()
        self.process.kill()
        self.process.join()


class WorkerGroup(Generic[Asked, Found]):
    """A pass on several devices, one process each, started on first use.

    Use it in a `with` block, or `close` it. Only one stream may be open at a time.

    Args:
        make: an importable function that makes the pass of a spec on a device. The pass measures samples with
            `measure(samples, request)`, which returns one result per sample.
        spec: plain data that every worker loads its model from.
        devices: one device name per worker.
        prepare: called first in every worker.
    """

    def __init__(
        self,
        make: Callable[[Any, str], Any],
        spec: Any,
        devices: Sequence[str],
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.make = make
        self.spec = spec
        self.devices = list(devices)
        self.prepare = prepare
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the worker processes."""
        for worker in self._workers:
            worker.end()
        self._workers = []

    def stream(
        self, samples: Sequence[Sample], request: Asked, progress: Progress | None = None
    ) -> Iterator[list[Found]]:
        """Measure samples on all devices; yield units as soon as they are ready.

        If the caller stops early or an error occurs, the workers are killed.

        Raises:
            WorkerError: workers died repeatedly over the same samples.
        """
        if any(worker.unit is not None for worker in self._workers):
            raise RuntimeError("another stream of this group is not finished. Exhaust it or close it first.")
        for device in self.devices[len(self._workers) :]:
            self._workers.append(self._start(device))
        units = self._units(samples)
        finished = False
        try:
            for worker in self._workers:
                self._give_next(worker, units, request)
            while busy := {worker.connection: worker for worker in self._workers if worker.unit is not None}:
                for connection in wait(list(busy)):
                    worker = busy[connection]  # type: ignore[index]
                    results = self._take(worker, request)
                    if results:
                        # Assign the next unit first, so that the device does not wait while the caller processes
                        # results.
                        self._give_next(worker, units, request)
                        if progress is not None:
                            progress(len(results))
                        yield results
            finished = True
        finally:
            if not finished:
                self.close()

    def _units(self, samples: Sequence[Sample]) -> Iterator[_Unit]:
        for positions in self._cut(samples):
            yield _Unit([samples[position] for position in positions], positions)

    def _cut(self, samples: Sequence[Sample]) -> Iterator[Sequence[int]]:
        """Yield the positions of the samples of each unit."""
        work = [work_of(sample) for sample in samples]
        queue = UnitQueue([Source("samples", work, list)], len(self.devices))
        while (unit := queue.next()) is not None:
            yield unit.positions

    def _start(self, device: str) -> _Worker:
        # Spawn, not fork: neither CUDA nor threads survive a fork.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        threads = max(1, (os.cpu_count() or 1) // len(self.devices))
        arguments = (theirs, self.make, self.spec, device, threads, self.prepare)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        # Close our copy, so that the worker's death closes the pipe.
        theirs.close()
        return _Worker(device, process, ours)

    def _give_next(self, worker: _Worker, units: Iterator[_Unit], request: Asked) -> None:
        unit = next(units, None)
        if unit is not None:
            self._give(worker, unit, request)

    def _give(self, worker: _Worker, unit: _Unit, request: Asked) -> None:
        worker.unit = unit
        try:
            worker.connection.send((list(unit.samples), request))
        except OSError:
            # The worker died before it received the unit, so the unit is not to blame.
            self._replace(worker, request, blame=0)

    def _take(self, worker: _Worker, request: Asked) -> list[Found]:
        """Return the results that a worker sent, or nothing if it died and a new worker got its unit."""
        try:
            answer: list[Found] | Exception = worker.connection.recv()
        except (EOFError, OSError):
            self._replace(worker, request)
            return []
        unit, worker.unit = worker.unit, None
        if isinstance(answer, Exception):
            raise answer
        assert unit is not None
        for result in answer:
            result.position = unit.positions[result.position]
        return answer

    def _replace(self, worker: _Worker, request: Asked, blame: int = 1) -> None:
        unit = worker.unit
        assert unit is not None
        worker.end()
        unit.deaths += blame
        if unit.deaths >= TRIES:
            raise WorkerError(
                f"{unit.deaths} worker processes on {worker.device} died while they loaded the model or measured the "
                f"{len(unit.samples)} samples from {unit.samples[0].sample_id} on (the last with exit code "
                f"{worker.process.exitcode}). Check whether the machine is out of memory."
            )
        new = self._start(worker.device)
        worker.process, worker.connection = new.process, new.connection
        self._give(worker, unit, request)


class DeviceGroup(WorkerGroup[Request, SampleSignals]):
    """The same forward pass on several devices: see `WorkerGroup` and `ForwardPass`."""

    def __init__(self, spec: PassSpec, devices: Sequence[str], prepare: Callable[[], None] | None = None) -> None:
        super().__init__(make_pass, spec, devices, prepare)


def _work(
    connection: Connection,
    make: Callable[[Any, str], Any],
    spec: Any,
    device: str,
    threads: int,
    prepare: Callable[[], None] | None,
) -> None:
    """Run a worker process: measure units until the parent is gone."""
    # Ctrl-C reaches every process of the terminal; the parent decides when workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if torch.device(device).type == "cpu":
        torch.set_num_threads(threads)
    if prepare is not None:
        prepare()
    scoring: Any = None
    while True:
        try:
            samples, request = connection.recv()
        except EOFError:
            return
        try:
            # Loaded here, so that a loading error is sent like any other.
            scoring = scoring or make(spec, device)
            connection.send(scoring.measure(samples, request))
        except BrokenPipeError:
            return
        except Exception as error:
            # The parent raises it, whatever it is.
            connection.send(_sendable(error))


def _sendable(error: Exception) -> Exception:
    """Return an error that can be pickled, with the traceback in the message unless it is a `ScoringError`."""
    if isinstance(error, ScoringError):
        return type(error)(*error.args)
    return ScoringError("a worker process failed:\n" + "".join(traceback.format_exception(error)))
