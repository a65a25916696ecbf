"""Measure the same samples before a training run and at each of its intermediate checkpoints.

Learnability is the fall of the loss since before the run. S2L clusters the losses along it, and GRACE may average over
the step gradients.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from curation_resources.chunking import pieces
from curation_resources.scoring.results import GradientFeatures, StepGradients
from curation_resources.scoring.samples import NON_FINITE, Request, Sample, SampleSignals
from curation_resources.scoring.spec import PassSpec

CHUNK = 4096
"""Maximum samples per chunk; checkpoints that do not stay loaded are loaded once per chunk."""

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
KEPT_BYTES = 2 * 2**30
"""Total weight size of all checkpoints up to which they stay loaded."""

T = TypeVar("T")
Progress = Callable[[int], None]


class Pass(Protocol):
    """A pass that measures at one checkpoint."""

    def stream(
        self, samples: Sequence[Sample], request: Request, progress: Progress | None = None
    ) -> Iterator[list[SampleSignals]]:
        """See `curation_resources.scoring.forward.ForwardPass.stream`."""


Opening = Callable[[], AbstractContextManager[Pass]]
"""Opens the pass at a checkpoint, for the duration of a `with` block."""


@dataclass(frozen=True)
class Visit:
    """A sample's results at one checkpoint.

    Attributes:
        loss: mean NLL of its response.
        gradients: of its steps.
        features: of its gradient.
        adam_features: of the direction that Adam would take.
        flags: of the step gradients.
    """

    loss: float | None
    gradients: StepGradients | None
    features: GradientFeatures | None
    adam_features: GradientFeatures | None
    flags: Sequence[str]

    @classmethod
    def of(cls, result: SampleSignals) -> Visit:
        """Extract the results to keep; losses of single tokens are dropped."""
        loss = None if result.token_nll is None else float(np.mean(result.token_nll, dtype=np.float64))
        return cls(loss, result.step_gradients, result.features, result.adam_features, result.gradient_flags)


def specs_of(spec: PassSpec) -> list[PassSpec]:
    """Return the specs of a trajectory's checkpoints."""
    if spec.adapter is None:
        return [replace(spec, model_folder=folder, trajectory=()) for folder in spec.trajectory]
    return [replace(spec, adapter=folder, trajectory=()) for folder in spec.trajectory]


def start_of(spec: PassSpec) -> PassSpec:
    """Return the spec of the model that the training run started from."""
    return replace(spec, model_folder=spec.base or spec.model_folder, adapter=None, trajectory=())


def stay_loaded(spec: PassSpec) -> bool:
    """Return True if all checkpoints fit into memory together.

    Each holds as many weights as the model, in the dtype of measurement.
    """
    config = json.loads((spec.model_folder / "config.json").read_text())
    kept_in = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    on_disk = sum(file.stat().st_size for file in spec.model_folder.glob("*.safetensors"))
    loaded = on_disk / ITEM_BYTES.get(kept_in, 4) * ITEM_BYTES[spec.dtype]
    return loaded * len(spec.trajectory) <= KEPT_BYTES


def with_trajectories(
    samples: Sequence[Sample],
    request: Request,
    here: Callable[[], Pass],
    checkpoints: Sequence[Opening],
    start: Opening | None,
    progress: Progress | None = None,
    *,
    first: int = CHUNK,
    weights: Sequence[float] = (),
) -> Iterator[list[SampleSignals]]:
    """Measure samples at the target's own checkpoint, as far as requested, and along its training run.

    Args:
        samples: samples to measure.
        request: signals at the target's own checkpoint and at the others.
        here: returns the pass at the own checkpoint; called only if something is measured there.
        checkpoints: of the trajectory, in the order of their steps; empty if not requested.
        start: the model before the run; None if not requested.
        progress: called with the number of samples done since the last call.
        first: size of the first chunk (`curation_resources.chunking`).
        weights: of the checkpoints, as `PassSpec.trajectory_weights`.
    """
    for begin, end in pieces(len(samples), CHUNK, first):
        chunk = samples[begin:end]
        results = _by_position(here().stream(chunk, request.here)) if request.here != Request() else {}
        if start is not None:
            for position, found in _visits(chunk, [start], Request(token_likelihoods=True), results).items():
                results[position].base_nll = found[0].loss
        if checkpoints:
            for position, found in _visits(chunk, checkpoints, request.on_the_way, results).items():
                _add_trajectory(results[position], found)
                results[position].trajectory_weights = list(weights)
        for position, result in results.items():
            result.position = begin + position
            if _is_incomplete(result, request) and result.tokens and NON_FINITE not in result.flags:
                result.flags = [*result.flags, NON_FINITE]
        if progress is not None:
            progress(len(chunk))
        yield list(results.values())


def _visits(
    chunk: Sequence[Sample], checkpoints: Sequence[Opening], request: Request, results: dict[int, SampleSignals]
) -> dict[int, list[Visit]]:
    """Return each checkpoint's results for the samples, by position.

    Samples that are missing in `results` are added to it from the first checkpoint.
    """
    visits: dict[int, list[Visit]] = {}
    for checkpoint in checkpoints:
        with checkpoint() as at:
            found = _by_position(at.stream(chunk, request))
        for position, result in found.items():
            if position in results:
                results[position].elsewhere_tokens += result.tokens + result.backward_tokens
            else:
                results[position] = replace(
                    result, token_nll=None, step_gradients=None, features=None, adam_features=None
                )
            visits.setdefault(position, []).append(Visit.of(result))
    return visits


def _add_trajectory(result: SampleSignals, visits: Sequence[Visit]) -> None:
    """Add a sample's results along the run: a signal gets the values of all checkpoints, or none."""
    result.trajectory = _all_of(visit.loss for visit in visits)
    result.trajectory_gradients = _all_of(visit.gradients for visit in visits)
    result.trajectory_features = _all_of(visit.features for visit in visits)
    result.trajectory_adam_features = _all_of(visit.adam_features for visit in visits)
    # List each flag once. If gradients are missing, list only the reasons.
    saying = [visit for visit in visits if result.trajectory_gradients is not None or visit.gradients is None]
    result.trajectory_gradient_flags = list(dict.fromkeys(flag for visit in saying for flag in visit.flags))


def _all_of(found: Iterable[T | None]) -> list[T] | None:
    """Return the values of all checkpoints, or None if one is missing."""
    values = list(found)
    there = [value for value in values if value is not None]
    return there if len(there) == len(values) else None


def _is_incomplete(result: SampleSignals, request: Request) -> bool:
    """Return True if a sample lacks a value that should have been measurable at another checkpoint."""
    gradients = request.trajectory_gradients is not None and result.trajectory_gradients is None
    features = request.trajectory_features is not None and result.trajectory_features is None
    directions = request.trajectory_adam_features is not None and result.trajectory_adam_features is None
    return (
        (request.base_likelihoods and result.base_nll is None)
        or (request.trajectory and result.trajectory is None)
        or ((features or directions) and result.labels > 0)
        or (gradients and not result.trajectory_gradient_flags and "truncated" not in result.flags)
    )


def _by_position(stream: Iterator[list[SampleSignals]]) -> dict[int, SampleSignals]:
    return {result.position: result for batch in stream for result in batch}
