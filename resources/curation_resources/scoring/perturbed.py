"""Early losses at the base model and at all perturbed checkpoints, in one load of the model.

Source: TEMP, arXiv 2606.26797: l_100 at a randomly perturbed checkpoint sorts out what is easy, l_100 and l_1000 at
eight checkpoints towards a fine-tuned endpoint say what to keep of the rest. Samples are taken in windows: each is
encoded and cut once, then the weights are changed and the whole window is run, checkpoint after checkpoint. The
results of a window come together, with the weights back at theta_0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from curation_resources.scoring.devices import WorkerGroup, make_pass
from curation_resources.scoring.endpoints import direction_to
from curation_resources.scoring.forward import ForwardPass, Progress
from curation_resources.scoring.measuring import describe
from curation_resources.scoring.perturbed_samples import PerturbedRequest, PerturbedSignals, Realised
from curation_resources.scoring.perturbing import PerturbationError, Perturber
from curation_resources.scoring.prefetch import EncodingAhead
from curation_resources.scoring.prefixes import cut_to_windows
from curation_resources.scoring.samples import (
    NON_FINITE,
    UNRUNNABLE,
    Encoded,
    PrefixWindows,
    Request,
    Sample,
    SampleSignals,
)
from curation_resources.scoring.spec import PerturbedSpec

Part = Literal["base", "random", "directional"]

CPU_WINDOW = 256
"""Samples of a window on the CPU. Making all checkpoints of a window takes as long as running a sample or so there."""

CUDA_WINDOW = 2048
"""Samples of a window on a CUDA device, where noise, which the CPU makes, takes as long as running some dozens
(reckoned from the CPU's 3.5 ns an element and thread, not measured on a device)."""

WINDOW_BYTES = 2**32
"""Pixels that close a window before it has that many samples; as many again are held meanwhile."""


class PerturbedPass:
    """Measures early losses of samples at the perturbed checkpoints of one model.

    Results do not depend on batches, windows or order (to fp32 rounding).

    Args:
        scoring: the pass at the base model.
        perturber: of that model.
        window_samples: samples of a window; default: `CPU_WINDOW` or `CUDA_WINDOW`.
    """

    def __init__(self, scoring: ForwardPass, perturber: Perturber, window_samples: int | None = None) -> None:
        self.scoring = scoring
        self.perturber = perturber
        self.window_samples = window_samples or window_of(scoring.checkpoint.device.type)

    def measure(self, samples: Sequence[Sample], request: PerturbedRequest) -> list[PerturbedSignals]:
        """Measure samples; results are in the order of the samples."""
        return [result for window in self.stream(samples, request) for result in window]

    def stream(
        self, samples: Sequence[Sample], request: PerturbedRequest, progress: Progress | None = None
    ) -> Iterator[list[PerturbedSignals]]:
        """Measure samples; yields the results of one window after another, in order.

        A sample that cannot be run comes back all the same, with the reason as a flag.

        Args:
            samples: what to measure.
            request: at which checkpoints, and which windows.
            progress: called with the number of samples done since the last call.

        Raises:
            PerturbationError: directional checkpoints are asked for, and there is no endpoint.
            OutOfMemoryError: a single sample does not fit into the device's memory.
        """
        start = 0
        for window in EncodingAhead(self.scoring.encoder, samples, self.window_samples, WINDOW_BYTES):
            results = self.measure_encoded(window, request, start)
            if progress is not None:
                progress(len(results))
            yield results
            start += len(window)

    def measure_encoded(
        self, window: Sequence[Encoded], request: PerturbedRequest, start: int = 0
    ) -> list[PerturbedSignals]:
        """Measure one window of encoded samples; `start` is the position of its first. See `stream`."""
        if request.directional and not self.perturber.steps:
            raise PerturbationError("directional checkpoints need an endpoint: give one, or ask for directional=False")
        lengths = (request.filter_windows if request.base or request.sigma is not None else ()) + (
            request.path_windows if request.directional else ()
        )
        if not lengths:
            raise PerturbationError("nothing is asked for: ask for the base model, a sigma or directional checkpoints")
        every = request.windows(lengths)
        described = [describe(encoded, position, every) for position, encoded in enumerate(window, start)]
        results = [_without_losses(known) for known in described]
        runnable = [place for place, known in enumerate(described) if _runs(known)]
        cut = [cut_to_windows(window[place], every) for place in runnable]
        realised: list[Realised] = []
        measured: dict[Part, list[list[SampleSignals]]] = {}
        try:
            for part, windows in self._checkpoints(request, realised):
                measured.setdefault(part, []).append(self.losses(cut, windows))
        finally:
            self.perturber.restore()
        for row, place in enumerate(runnable):
            for part, passes in measured.items():
                _add(results[place], part, [found[row] for found in passes])
        checkpoints = tuple(realised)
        for result in results:
            result.realised = checkpoints
        return results

    def losses(self, window: Sequence[Encoded], windows: PrefixWindows) -> list[SampleSignals]:
        """Early losses of encoded samples at the weights that the model has now, in order."""
        request = Request(prefix_losses=windows)
        found = [result for batch in self.scoring.measure_encoded(window, request) for result in batch]
        return sorted(found, key=lambda result: result.position)

    def _checkpoints(self, request: PerturbedRequest, realised: list[Realised]) -> Iterator[tuple[Part, PrefixWindows]]:
        """Bring the weights to one checkpoint after another; its part of the result, and what to measure there."""
        if request.base:
            yield "base", request.windows(request.filter_windows)
        if request.sigma is not None:
            realised.append(self.perturber.move_randomly(request.sigma, request.draws))
            yield "random", request.windows(request.filter_windows)
        if request.directional:
            for step in range(1, self.perturber.steps + 1):
                realised.append(self.perturber.move_along(step))
                yield "directional", request.windows(request.path_windows)


class PerturbedGroup(WorkerGroup[PerturbedRequest, PerturbedSignals]):
    """The same perturbed pass on several devices: see `WorkerGroup`. A unit is a window of samples.

    Every process holds what a `Perturber` holds.
    """

    def __init__(self, spec: PerturbedSpec, devices: Sequence[str], prepare: Callable[[], None] | None = None) -> None:
        super().__init__(make_perturbed_pass, spec, devices, prepare)

    def _cut(self, samples: Sequence[Sample]) -> Iterator[Sequence[int]]:
        size = window_of(self.devices[0])
        # Fewer where that would leave devices without any.
        size = max(1, min(size, -(-len(samples) // len(self.devices))))
        return (range(start, min(start + size, len(samples))) for start in range(0, len(samples), size))


def make_perturbed_pass(spec: PerturbedSpec, device: str) -> PerturbedPass:
    """Load base model and direction onto one device of this process.

    Raises:
        PerturbationError: the base has an adapter.
        EndpointError: the endpoint gives no direction from the base.
    """
    if spec.base.adapter is not None:
        raise PerturbationError(
            f"perturbed checkpoints start from the base model, not from the adapter {spec.base.adapter}: give a folder "
            "with merged weights as the model"
        )
    # Before the model: its two copies of the weights are gone again when the model comes.
    direction = (
        None
        if spec.endpoint is None
        else direction_to(spec.endpoint, spec.base.model_folder, trust_remote_code=spec.base.trust_remote_code)
    )
    scoring = make_pass(spec.base, device)
    model = scoring.checkpoint.model
    perturber = Perturber(model, spec.seed, direction, spec.radii, radius_unit=spec.radius_unit)
    return PerturbedPass(scoring, perturber)


def window_of(device: str) -> int:
    """Samples of a window on a device of that name."""
    return CUDA_WINDOW if device.startswith("cuda") else CPU_WINDOW


def _runs(described: SampleSignals) -> bool:
    """Whether early losses can be measured of a sample."""
    return not described.prefix_flags and not set(described.flags) & UNRUNNABLE.keys()


def _without_losses(described: SampleSignals) -> PerturbedSignals:
    """A sample's tokens and flags, with nothing measured yet."""
    return PerturbedSignals(
        sample_id=described.sample_id,
        position=described.position,
        prompt_tokens=described.prompt_tokens,
        response_tokens=described.response_tokens,
        flags=list(described.flags),
        prefix_flags=list(described.prefix_flags),
    )


def _add(result: PerturbedSignals, part: Part, found: Sequence[SampleSignals]) -> None:
    """Add to a sample's result what was found at the checkpoints of one part."""
    result.tokens += sum(one.tokens for one in found)
    losses = [one.prefix_nll for one in found if one.prefix_nll is not None]
    if len(losses) < len(found):
        if NON_FINITE not in result.flags:
            result.flags.append(NON_FINITE)
    elif part == "base":
        (result.base,) = losses
    elif part == "random":
        (result.random,) = losses
    else:
        result.directional = losses
