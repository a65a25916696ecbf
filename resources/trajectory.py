"""Losses along a training run: the same samples at each of the checkpoints that it left on its way (S2L)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

import numpy as np

from resources.scoring.samples import Request, Sample, SampleSignals
from resources.scoring.spec import PassSpec

CHUNK = 4096
"""Samples that are measured at all checkpoints before the next ones: a model is loaded for so many at a time."""

KEPT_BYTES = 2 * 2**30
"""Weights of all checkpoints together up to which they stay loaded."""

Progress = Callable[[int], None]


class Pass(Protocol):
    """What measures at one checkpoint."""

    def stream(
        self, samples: Sequence[Sample], request: Request, progress: Progress | None = None
    ) -> Iterator[list[SampleSignals]]:
        """See `resources.scoring.forward.ForwardPass.stream`."""


def specs_of(spec: PassSpec) -> list[PassSpec]:
    """What each checkpoint of a trajectory is loaded from."""
    if spec.adapter is None:
        return [replace(spec, model_folder=folder, trajectory=()) for folder in spec.trajectory]
    return [replace(spec, adapter=folder, trajectory=()) for folder in spec.trajectory]


def stay_loaded(spec: PassSpec) -> bool:
    """Whether all checkpoints fit into memory together: each holds weights of the size of the model's."""
    own = sum(file.stat().st_size for file in spec.model_folder.glob("*.safetensors"))
    return own * len(spec.trajectory) <= KEPT_BYTES


def with_trajectories(
    samples: Sequence[Sample],
    request: Request,
    here: Callable[[], Pass],
    checkpoints: Sequence[Callable[[], AbstractContextManager[Pass]]],
    progress: Progress | None = None,
) -> Iterator[list[SampleSignals]]:
    """Measure samples at the target's own checkpoint, as far as that is asked for, and their losses at others.

    Args:
        samples: what to measure.
        request: what is measured at the own checkpoint; `trajectory` is taken to be asked for.
        here: the pass at the own checkpoint; called if anything is measured there.
        checkpoints: gives the pass at each of the others, in the order of their steps.
        progress: called with the number of samples done since the last call.
    """
    own = replace(request, trajectory=False)
    for start in range(0, len(samples), CHUNK):
        chunk = samples[start : start + CHUNK]
        results = _by_position(here().stream(chunk, own)) if own != Request() else {}
        losses: dict[int, list[float]] = {}
        for checkpoint in checkpoints:
            with checkpoint() as at:
                found = _by_position(at.stream(chunk, Request(token_likelihoods=True)))
            for position, result in found.items():
                known = results.get(position)
                if known is None:
                    # Of what is not measured at the own checkpoint, the first of the others says what there is to say.
                    results[position] = known = replace(result, token_nll=None)
                else:
                    known.trajectory_tokens += result.tokens
                if result.token_nll is not None:
                    losses.setdefault(position, []).append(float(np.mean(result.token_nll, dtype=np.float64)))
        for position, result in results.items():
            result.position = start + position
            _add(result, losses.get(position, []), len(checkpoints))
        if progress is not None:
            progress(len(chunk))
        yield list(results.values())


def _by_position(stream: Iterator[list[SampleSignals]]) -> dict[int, SampleSignals]:
    return {result.position: result for batch in stream for result in batch}


def _add(result: SampleSignals, losses: list[float], wanted: int) -> None:
    """The losses of a sample that has one at every checkpoint; of a sample that was run, why it has not."""
    if len(losses) == wanted:
        result.trajectory = losses
    elif result.tokens and "non_finite" not in result.flags:
        result.flags = [*result.flags, "non_finite"]
