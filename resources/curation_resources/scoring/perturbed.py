"""Early losses at the base model and at all perturbed checkpoints, in one load of the model.

Source: TEMP, arXiv 2606.26797: l_100 at a randomly perturbed checkpoint filters easy samples, and l_100 and l_1000 at
eight checkpoints towards a fine-tuned endpoint rank the rest. Samples are processed in windows: each is encoded and
truncated once, then the weights are changed and the whole window is run, checkpoint after checkpoint. The results of a
window are returned together, with the weights back at theta_0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from curation_resources.scoring.devices import WorkerGroup, make_pass
from curation_resources.scoring.endpoints import direction_to
from curation_resources.scoring.forward import ForwardPass, Progress
from curation_resources.scoring.measuring import describe
from curation_resources.scoring.perturbing import PerturbationError, Perturber
from curation_resources.scoring.prefetch import EncodingAhead
from curation_resources.scoring.prefixes import cut_to_windows
from curation_resources.scoring.samples import (
    NON_FINITE,
    UNRUNNABLE,
    Encoded,
    PerturbedRequest,
    PerturbedSignals,
    PrefixWindows,
    Realised,
    Request,
    Sample,
    SampleSignals,
)
from curation_resources.scoring.spec import PerturbedSpec

Part = Literal["base", "random", "directional"]

CPU_WINDOW = 256
"""Samples of a window on the CPU, where making all checkpoints takes about as long as running one sample."""

CUDA_WINDOW = 2048
"""Samples of a window on a CUDA device. Making the noise on the CPU takes as long as running some dozens of samples.

This is extrapolated from the CPU's 3.5 ns per element and thread, not measured on a device.
"""

WINDOW_BYTES = 2**32
"""Bytes of pixels that close a window early; prefetching holds as many again."""


class PerturbedPass:
    """Measures early losses of samples at the perturbed checkpoints of one model.

    Results do not depend on batches, windows or order (to fp32 rounding).

    Args:
        scoring: the pass at the base model.
        perturber: changes that model's weights.
        window_samples: samples of a window; default: `CPU_WINDOW` or `CUDA_WINDOW`.
    """

    def __init__(self, scoring: ForwardPass, perturber: Perturber, window_samples: int | None = None) -> None:
        self.scoring = scoring
        self.perturber = perturber
        self.window_samples = window_samples or window_of(scoring.checkpoint.device.type)

    def measure(self, samples: Sequence[Sample], request: PerturbedRequest) -> list[PerturbedSignals]:
        """Measure samples; return results in the order of the samples."""
        return [result for window in self.stream(samples, request) for result in window]

    def stream(
        self, samples: Sequence[Sample], request: PerturbedRequest, progress: Progress | None = None
    ) -> Iterator[list[PerturbedSignals]]:
        """Measure samples; yield the results of one window after another, in order.

        A sample that cannot be run is returned as well, with the reason as a flag.

        Args:
            samples: samples to measure.
            request: checkpoints and prefix windows to measure.
            progress: called with the number of samples done since the last call.

        Raises:
            PerturbationError: directional checkpoints are requested without an endpoint.
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
        """Measure one window of encoded samples; `start` is the position of its first sample. See `stream`."""
        if request.directional and not self.perturber.steps:
            raise PerturbationError("directional checkpoints need an endpoint. Set one, or request directional=False.")
        lengths = (request.filter_windows if request.base or request.sigma is not None else ()) + (
            request.path_windows if request.directional else ()
        )
        if not lengths:
            raise PerturbationError("nothing is requested. Request the base model, a sigma or directional checkpoints.")
        every = request.windows(lengths)
        described = [describe(encoded, position, every) for position, encoded in enumerate(window, start)]
        results = [_without_losses(known) for known in described]
        runnable = [place for place, known in enumerate(described) if _is_measurable(known)]
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
        """Return early losses of encoded samples at the model's current weights, in order."""
        request = Request(prefix_losses=windows)
        found = [result for batch in self.scoring.measure_encoded(window, request) for result in batch]
        return sorted(found, key=lambda result: result.position)

    def _checkpoints(self, request: PerturbedRequest, realised: list[Realised]) -> Iterator[tuple[Part, PrefixWindows]]:
        """Move the weights to each checkpoint in turn; yield its part of the result and the windows to measure."""
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

    Every process has its own `Perturber`.
    """

    def __init__(self, spec: PerturbedSpec, devices: Sequence[str], prepare: Callable[[], None] | None = None) -> None:
        super().__init__(make_perturbed_pass, spec, devices, prepare)

    def _cut(self, samples: Sequence[Sample]) -> Iterator[Sequence[int]]:
        size = window_of(self.devices[0])
        # Smaller windows, if full ones would leave devices idle.
        size = max(1, min(size, -(-len(samples) // len(self.devices))))
        return (range(start, min(start + size, len(samples))) for start in range(0, len(samples), size))


def make_perturbed_pass(spec: PerturbedSpec, device: str) -> PerturbedPass:
    """Load base model and direction onto one device of this process.

    Raises:
        PerturbationError: the base has an adapter.
        EndpointError: the endpoint has no direction from the base.
    """
    if spec.base.adapter is not None:
        raise PerturbationError(
            f"perturbed checkpoints start from the base model, not from the adapter {spec.base.adapter}. Set a folder "
            "with merged weights as the model."
        )
    # Computed before the model is loaded, so that its two copies of the weights are freed by then.
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
    """Return the samples of a window on a device of that name."""
    return CUDA_WINDOW if device.startswith("cuda") else CPU_WINDOW


def _is_measurable(described: SampleSignals) -> bool:
    """Return True if a sample's early losses can be measured."""
    return not described.prefix_flags and not set(described.flags) & UNRUNNABLE.keys()


def _without_losses(described: SampleSignals) -> PerturbedSignals:
    """Return a sample's token counts and flags, without measurements."""
    return PerturbedSignals(
        sample_id=described.sample_id,
        position=described.position,
        prompt_tokens=described.prompt_tokens,
        response_tokens=described.response_tokens,
        flags=list(described.flags),
        prefix_flags=list(described.prefix_flags),
    )


def _add(result: PerturbedSignals, part: Part, found: Sequence[SampleSignals]) -> None:
    """Add the losses at the checkpoints of one part to a sample's result."""
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
