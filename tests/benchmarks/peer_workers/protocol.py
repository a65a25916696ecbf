"""How a worker talks to the benchmark: one line of JSON for every line it reads. Imports nothing of ours.

At its start a worker chooses its batch size, then says what it runs (`Ready`). It answers `run` with the wall and
process seconds of one pass, and `check` with what its last pass gave. Whatever else is printed goes to stderr.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

LONG = 5.0
"""Seconds; a pass that takes as long is timed once when the batch size is chosen, a shorter one three times."""


@dataclass(frozen=True)
class Side:
    """One way of measuring sequences.

    Attributes:
        run: from token ids [N, T] and a batch size to what was measured, a row a sequence, or None.
        batches: batch sizes to choose from, in sequences.
        norms: from token ids [N, T] to the norms [N] of the gradients of the mean loss with respect to the weights
            of the decoder's linear layers, unprojected; None if the side has no gradients.
        sequences: so many of the sequences are run; None for all.
        setting: in words, for the report.
    """

    run: Callable[[torch.Tensor, int], torch.Tensor | None]
    batches: Sequence[int]
    setting: str
    norms: Callable[[torch.Tensor], torch.Tensor] | None = None
    sequences: int | None = None


def load_model(folder: Path) -> Any:
    """The causal language model in a folder, in fp32 and without dropout, that keeps no key-value cache."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.use_cache = False
    return model


def linear_weights(model: Any) -> list[str]:
    """Names of the weights of the decoder's linear layers, the LM head not among them."""
    decoder = f"{model.base_model_prefix}."
    modules = ((name, module) for name, module in model.named_modules() if name.startswith(decoder))
    return [f"{name}.weight" for name, module in modules if isinstance(module, torch.nn.Linear)]


def timed(side: Side, ids: torch.Tensor, batch: int) -> tuple[float, float, torch.Tensor | None]:
    """Wall seconds, process seconds and result of one pass."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = side.run(ids, batch)
    return time.perf_counter() - wall, time.process_time() - cpu, result


def choose(side: Side, ids: torch.Tensor) -> int:
    """The fastest batch size."""
    candidates = sorted({min(batch, len(ids)) for batch in side.batches})
    if len(candidates) == 1:
        return candidates[0]
    side.run(ids, candidates[-1])  # what the first pass pays for
    seconds: dict[int, float] = {}
    for batch in candidates:
        seconds[batch] = timed(side, ids, batch)[0]
        if seconds[batch] < LONG:
            seconds[batch] = min(seconds[batch], *(timed(side, ids, batch)[0] for _ in range(2)))
    print(side.setting, "seconds by batch size:", seconds, file=sys.stderr)
    return min(seconds, key=lambda batch: seconds[batch])


def check(side: Side, ids: torch.Tensor, result: torch.Tensor | None) -> dict[str, object]:
    """What shows that a side did its work: finite, non-zero and different rows, and norms of two gradients."""
    answer: dict[str, object] = {"norms": side.norms(ids[:2]).tolist() if side.norms else None}
    if result is not None:
        rows = result.float().flatten(1)
        answer |= {
            "rows": len(rows),
            "numbers": rows.shape[1],
            "finite": bool(rows.isfinite().all()),
            "nonzero": bool((rows.norm(dim=1) > 0).all()),
            "distinct": len(torch.unique(rows, dim=0)) == len(rows),
        }
    return answer


def serve(make: Callable[[str, Path], Side], *packages: str) -> None:
    """Answer until stdin ends. Arguments of the process: the side's name, the model's folder, the tokens' file."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict[str, object]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    torch.set_num_threads(1)
    name, folder, tokens = sys.argv[1:]
    side = make(name, Path(folder))
    ids = torch.from_numpy(np.load(tokens))[: side.sequences]
    batch = choose(side, ids)
    versions = {package: importlib.metadata.version(package) for package in ("torch", "transformers", *packages)}
    say({"batch": batch, "sequences": len(ids), "setting": side.setting, "versions": versions})
    result: torch.Tensor | None = None
    for line in sys.stdin:
        if line.strip() == "check":
            say(check(side, ids, result))
        else:
            wall, cpu, result = timed(side, ids, batch)
            say({"wall": wall, "cpu": cpu})
