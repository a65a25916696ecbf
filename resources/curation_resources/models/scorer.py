"""The model that assets measure with: loaded on first use, once per run, on one or several devices.

Inputs and outputs are plain data, so callers need neither torch nor a GPU to import this module.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import polars as pl

from curation_resources.chunking import FIRST, pieces
from curation_resources.quiet import quieten_transformers
from curation_resources.scoring.samples import PerturbedRequest, PerturbedSignals, Request, Sample, SampleSignals
from curation_resources.scoring.spec import PassSpec, PerturbedSpec
from curation_resources.training.files import INFLUENCE
from curation_resources.training.trajectory import (
    CHUNK,
    Opening,
    Pass,
    specs_of,
    start_of,
    stay_loaded,
    with_trajectories,
)

if TYPE_CHECKING:
    from curation_resources.scoring.perturbed import PerturbedGroup, PerturbedPass

PERTURBED_CHUNK = 2048
"""Samples per result of the pass over perturbed checkpoints: several windows on a CPU, one on a GPU."""


class Scorer:
    """Measures samples with one checkpoint. Use it in a `with` block, which ends its worker processes.

    Args:
        spec: the checkpoint and the settings that it is measured under.
        perturbed: how to make perturbed checkpoints and what to measure at them; None: nothing.
        device: `auto` (every visible CUDA device, else the CPU), `cpu`, `cuda`, or several: `cuda:0,cuda:1`.
    """

    def __init__(
        self,
        spec: PassSpec,
        device: str = "auto",
        perturbed: tuple[PerturbedSpec, PerturbedRequest] | None = None,
    ) -> None:
        self.spec = spec
        self.perturbed = perturbed
        self.device = device
        self._workers = ExitStack()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()

    @cached_property
    def _devices(self) -> list[str]:
        from curation_resources.scoring.device_names import devices_of  # noqa: PLC0415

        return devices_of(self.device)

    @property
    def device_count(self) -> int:
        """The number of devices in use."""
        return len(self._devices)

    @cached_property
    def _pass(self) -> Pass:
        # Torch and transformers take seconds to import: only runs that measure pay for them.
        quieten_transformers()
        if self.spec.kind == "embedding":
            from curation_resources.models.embedder import EmbeddingPass  # noqa: PLC0415

            return EmbeddingPass(self.spec, self._devices[0])
        if self.spec.kind == "reward":
            from curation_resources.models.reward import RewardPass  # noqa: PLC0415

            return RewardPass(self.spec, self._devices[0])
        if self.spec.kind == "process_reward":
            from curation_resources.models.process_reward import ProcessRewardPass  # noqa: PLC0415

            return ProcessRewardPass(self.spec, self._devices[0])
        return self._workers.enter_context(self._loaded(self.spec))

    @contextmanager
    def _loaded(self, spec: PassSpec) -> Iterator[Pass]:
        """Yield a pass at a checkpoint, on one device or on all of them."""
        quieten_transformers()
        from curation_resources.scoring.devices import DeviceGroup, make_pass  # noqa: PLC0415

        if len(self._devices) > 1:
            with DeviceGroup(spec, self._devices, quieten_transformers) as group:
                yield group
        else:
            yield make_pass(spec, self._devices[0])

    @cached_property
    def perturbed_pass(self) -> PerturbedPass | PerturbedGroup:
        """The pass over perturbed checkpoints."""
        quieten_transformers()
        from curation_resources.scoring.perturbed import PerturbedGroup, make_perturbed_pass  # noqa: PLC0415

        assert self.perturbed is not None, "no perturbed checkpoints are configured"
        spec, _ = self.perturbed
        if len(self._devices) > 1:
            return self._workers.enter_context(PerturbedGroup(spec, self._devices, quieten_transformers))
        return make_perturbed_pass(spec, self._devices[0])

    @cached_property
    def _start(self) -> Opening:
        """The opener of the pass at the model before its training run, which stays loaded."""
        return _kept(self._workers.enter_context(self._loaded(start_of(self.spec))))

    @cached_property
    def _checkpoints(self) -> list[Opening]:
        """The openers of the passes at every checkpoint of the trajectory: kept loaded, or loaded each time."""
        specs = specs_of(self.spec)
        if not stay_loaded(self.spec):
            return [partial(self._loaded, spec) for spec in specs]
        return [_kept(self._workers.enter_context(self._loaded(spec))) for spec in specs]

    def load(self) -> None:
        """Load the model now, and not with the first samples."""
        _ = self._pass

    def device_name(self) -> str:
        """Return a human-readable name of the devices."""
        from curation_resources.scoring.devices import device_name  # noqa: PLC0415

        names = [device_name(device) for device in self._devices]
        return names[0] if len(names) == 1 else " + ".join(f"{names.count(n)} x {n}" for n in sorted(set(names)))

    def measure(
        self, samples: Sequence[Sample], request: Request, progress: Callable[[int], None] | None = None
    ) -> Generator[list[SampleSignals], None, None]:
        """Yield the requested signals of samples, in order of completion; see `scoring.forward.ForwardPass`.

        Close the generator if you do not exhaust it, so that its workers stop.
        """
        if request.in_run:
            yield from self._with_influence(samples, replace(request, in_run=False), progress)
        elif request.perturbed:
            yield from self._with_perturbed(samples, replace(request, perturbed=False), progress)
        elif request.along or request.base_likelihoods:
            checkpoints = self._checkpoints if request.along else ()
            start = self._start if request.base_likelihoods else None
            # Larger chunks amortize a model that is loaded again for each chunk.
            first = CHUNK if request.along and not stay_loaded(self.spec) else FIRST
            yield from with_trajectories(
                samples,
                request,
                lambda: self._pass,
                checkpoints,
                start,
                progress,
                first=first,
                weights=self.spec.trajectory_weights,
            )
        else:
            yield from self._pass.stream(samples, request, progress)

    @cached_property
    def _influence(self) -> dict[str, list[float]]:
        """Influence on each validation set by sample_id, as recorded by the training run."""
        assert self.spec.trained_on is not None, "no training run is configured"
        columns = pl.read_parquet(self.spec.trained_on, columns=["sample_id", INFLUENCE])
        return dict(columns.iter_rows())

    def _with_influence(
        self, samples: Sequence[Sample], request: Request, progress: Callable[[int], None] | None
    ) -> Generator[list[SampleSignals], None, None]:
        """Add the influence recorded by the training run to other requested signals; it runs no tokens."""
        for results in self.measure(samples, request, progress):
            for result in results:
                result.influence = self._influence.get(result.sample_id)
            yield results

    def _with_perturbed(
        self, samples: Sequence[Sample], request: Request, progress: Callable[[int], None] | None
    ) -> Generator[list[SampleSignals], None, None]:
        """Add early losses at perturbed checkpoints to other requested signals, chunk by chunk."""
        assert self.perturbed is not None, "no perturbed checkpoints are configured"
        for start, end in pieces(len(samples), PERTURBED_CHUNK):
            chunk = samples[start:end]
            own = self.measure(chunk, request) if request != Request() else ()
            results = {result.position: result for batch in own for result in batch}
            for window in self.perturbed_pass.stream(chunk, self.perturbed[1]):
                for found in window:
                    add_perturbed(results, found)
            for position, result in results.items():
                result.position = start + position
            if progress is not None:
                progress(len(chunk))
            yield list(results.values())


def _kept(loaded: Pass) -> Opening:
    """Return an opener for a pass that stays loaded."""
    return lambda: nullcontext(loaded)


def add_perturbed(results: dict[int, SampleSignals], found: PerturbedSignals) -> None:
    """Merge a sample's results at perturbed checkpoints into its other results, by position."""
    known = results.get(found.position)
    if known is None:
        known = results[found.position] = SampleSignals(
            found.sample_id,
            found.position,
            tokens=found.tokens,
            prompt_tokens=found.prompt_tokens,
            response_tokens=found.response_tokens,
            flags=list(found.flags),
        )
    else:
        known.elsewhere_tokens += found.tokens
        known.flags = [*known.flags, *(flag for flag in found.flags if flag not in known.flags)]
    known.prefix_flags = list(found.prefix_flags)
    known.perturbed = found
