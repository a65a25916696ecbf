"""Losses along a training run: the same samples before it, and at each of the checkpoints that it left on its way.

S2L clusters the latter; learnability is the fall from the former.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

import numpy as np

from resources.pieces import pieces
from resources.scoring.samples import Request, Sample, SampleSignals
from resources.scoring.spec import PassSpec

CHUNK = 4096
"""Most samples that are measured at all checkpoints before the next ones; a model that does not stay loaded is loaded
for so many at a time."""

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
KEPT_BYTES = 2 * 2**30
"""Weights of all checkpoints together up to which they stay loaded."""

Progress = Callable[[int], None]


class Pass(Protocol):
    """What measures at one checkpoint."""

    def stream(
        self, samples: Sequence[Sample], request: Request, progress: Progress | None = None
    ) -> Iterator[list[SampleSignals]]:
        """See `resources.scoring.forward.ForwardPass.stream`."""


Opening = Callable[[], AbstractContextManager[Pass]]
"""Gives the pass at a checkpoint, for as long as it is used."""


def specs_of(spec: PassSpec) -> list[PassSpec]:
    """What each checkpoint of a trajectory is loaded from."""
    if spec.adapter is None:
        return [replace(spec, model_folder=folder, trajectory=()) for folder in spec.trajectory]
    return [replace(spec, adapter=folder, trajectory=()) for folder in spec.trajectory]


def start_of(spec: PassSpec) -> PassSpec:
    """What the model is loaded from that the training run started with."""
    return replace(spec, model_folder=spec.base or spec.model_folder, adapter=None, trajectory=())


def stay_loaded(spec: PassSpec) -> bool:
    """Whether all checkpoints fit into memory together: each holds as many weights as the model, in the type that it
    is measured in."""
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
) -> Iterator[list[SampleSignals]]:
    """Measure samples at the target's own checkpoint, as far as that is asked for, and their losses at others.

    Args:
        samples: what to measure.
        request: what is measured at the own checkpoint, beside losses at others.
        here: the pass at the own checkpoint; called if anything is measured there.
        checkpoints: of the trajectory, in the order of their steps; none if it is not asked for.
        start: the model before the run; None if it is not asked for.
        progress: called with the number of samples done since the last call.
        first: samples of the first piece that results are given of (`resources.pieces`).
    """
    own = replace(request, trajectory=False, base_likelihoods=False)
    for begin, end in pieces(len(samples), CHUNK, first):
        chunk = samples[begin:end]
        results = _by_position(here().stream(chunk, own)) if own != Request() else {}
        if start is not None:
            for position, losses in _losses(chunk, [start], results).items():
                results[position].base_nll = losses[0] if losses else None
        if checkpoints:
            for position, losses in _losses(chunk, checkpoints, results).items():
                results[position].trajectory = losses if len(losses) == len(checkpoints) else None
        for position, result in results.items():
            result.position = begin + position
            lacks = (start is not None and result.base_nll is None) or (checkpoints and result.trajectory is None)
            if lacks and result.tokens and "non_finite" not in result.flags:
                result.flags = [*result.flags, "non_finite"]
        if progress is not None:
            progress(len(chunk))
        yield list(results.values())


def _losses(
    chunk: Sequence[Sample], checkpoints: Sequence[Opening], results: dict[int, SampleSignals]
) -> dict[int, list[float]]:
    """Mean losses of samples at checkpoints, by position; where there is none, one is left out.

    Of what is not in `results` yet, the first checkpoint says what there is to say.
    """
    losses: dict[int, list[float]] = {}
    for checkpoint in checkpoints:
        with checkpoint() as at:
            found = _by_position(at.stream(chunk, Request(token_likelihoods=True)))
        for position, result in found.items():
            if position in results:
                results[position].elsewhere_tokens += result.tokens
            else:
                results[position] = replace(result, token_nll=None)
            own = losses.setdefault(position, [])
            if result.token_nll is not None:
                own.append(float(np.mean(result.token_nll, dtype=np.float64)))
    return losses


def _by_position(stream: Iterator[list[SampleSignals]]) -> dict[int, SampleSignals]:
    return {result.position: result for batch in stream for result in batch}
