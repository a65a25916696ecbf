"""Per-sample gradients from factors against making them: spectra of attention by layer.

    python -m tests.benchmarks.gradients

A Qwen2 of random weights with hidden size 1,024, 8 layers, intermediate size 2,816 and vocabulary 1,000; sequences of
256 tokens of which all but the first are labels. One thread. The other side goes there and back for one sequence at a
time with the gradients of q, k, v and o, and decomposes each with `torch.linalg.svd`; `svdvals` is the same without
singular vectors.

Sides run in turn; ratios are medians over rounds, of wall time, with CPU time beside it. The last line is one JSON
object: `spectra_speedup` (time of the other side over ours, a sequence), `spectra_cpu_speedup`,
`spectra_speedup_over_svdvals`, `spectra_over_passes` (ours over the same passes with nothing made of the gradients)
and `spectra_max_relative_error` (nuclear norm and effective rank of any layer and projection).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from curation_resources.scoring.factors import backward
from curation_resources.scoring.gradient_pass import GradientPass
from curation_resources.scoring.head import StreamedHead
from curation_resources.scoring.loading import Checkpoint
from curation_resources.scoring.measuring import describe
from curation_resources.scoring.results import GradientSpectra
from curation_resources.scoring.samples import Encoded, Request
from curation_resources.scoring.spec import PROJECTIONS
from curation_resources.scoring.spectra import effective_rank
from tests.benchmarks.common import even_samples, finish, median_ratio, parser, qwen2, table

Found = dict[str, list[list[float]]]


def ours(checkpoint: Checkpoint, batch: Sequence[Encoded]) -> list[GradientSpectra]:
    """Spectra of a batch, as the pass measures them."""
    described = [describe(one, place) for place, one in enumerate(batch)]
    passing = GradientPass(checkpoint, StreamedHead(checkpoint.head))
    found = [one.spectra for one in passing.add(batch, described, Request(spectra=True))]
    return [one for one in found if one is not None]


def passes(checkpoint: Checkpoint, batch: Sequence[Encoded]) -> None:
    """There and back, with nothing made of the gradients."""
    backward(checkpoint, StreamedHead(checkpoint.head), batch, [])


def naive(model: Any, checkpoint: Checkpoint, one: Encoded, values: Callable[[Tensor], Tensor]) -> Found:
    """Spectra of one sequence: its weights' gradients by autograd, each decomposed."""
    layers = checkpoint.attention
    weights: list[Any] = [layer.layers[name].weight for layer in layers for name in PROJECTIONS]
    for weight in weights:
        weight.requires_grad_(True)
    ids = torch.tensor([one.input_ids])
    loss = F.cross_entropy(model(input_ids=ids, use_cache=False).logits[0, :-1], ids[0, 1:])
    gradients = torch.autograd.grad(loss, weights)
    for weight in weights:
        weight.requires_grad_(False)
    spectra = [values(gradient) for gradient in gradients]
    norms = torch.stack([own.sum() for own in spectra]).reshape(len(layers), -1)
    ranks = torch.stack([effective_rank(own) for own in spectra]).reshape(len(layers), -1)
    return {"nuclear_norm": norms.tolist(), "effective_rank": ranks.tolist()}


def with_vectors(gradient: Tensor) -> Tensor:
    """Singular values by the whole decomposition."""
    values: Tensor = torch.linalg.svd(gradient, full_matrices=False).S
    return values


def timed(side: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    side()
    return time.perf_counter() - wall, time.process_time() - cpu


def largest_error(found: GradientSpectra, expected: Found) -> float:
    """The largest relative error of any value."""
    pairs = [(found.nuclear_norm, expected["nuclear_norm"]), (found.effective_rank, expected["effective_rank"])]
    errors = [(torch.tensor(own) - torch.tensor(theirs)).abs() / torch.tensor(theirs) for own, theirs in pairs]
    return max(float(error.max()) for error in errors)


def main() -> None:
    """Run all sides and print what they took."""
    options = parser(__doc__)
    options.add_argument("--batch", type=int, default=4, help="sequences that go there and back together")
    given = options.parse_args()
    torch.set_num_threads(given.threads or 1)
    hidden, layers, tokens = (64, 2, 32) if given.small else (1024, 8, 256)
    model, checkpoint = qwen2(1_000, hidden, layers, hidden * 11 // 4, 4096, key_value_heads=max(1, hidden // 64))
    batch = even_samples(given.batch, tokens, 8, 1_000)
    reference = naive(model, checkpoint, batch[0], torch.linalg.svdvals)
    error = largest_error(ours(checkpoint, batch)[0], reference)
    sides = {
        "ours": lambda: ours(checkpoint, batch),
        "passes": lambda: passes(checkpoint, batch),
        "svd": lambda: naive(model, checkpoint, batch[0], with_vectors),
        "svdvals": lambda: naive(model, checkpoint, batch[0], torch.linalg.svdvals),
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(given.rounds):
        names = list(sides)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            share = given.batch if name in ("ours", "passes") else 1
            wall, cpu = timed(sides[name])
            took[name].append((wall / share, cpu / share))
    walls = {name: [wall for wall, _ in own] for name, own in took.items()}
    cpus = {name: [cpu for _, cpu in own] for name, own in took.items()}
    rows = [(name, round(min(walls[name]), 3), round(min(cpus[name]), 3)) for name in took]
    print(table(("side", "wall s a sequence", "CPU s"), rows))
    result = {
        "spectra_speedup": median_ratio(walls["svd"], walls["ours"]),
        "spectra_cpu_speedup": median_ratio(cpus["svd"], cpus["ours"]),
        "spectra_speedup_over_svdvals": median_ratio(walls["svdvals"], walls["ours"]),
        "spectra_over_passes": median_ratio(walls["ours"], walls["passes"]),
        "spectra_max_relative_error": error,
    }
    finish("gradients", result, given)


if __name__ == "__main__":
    main()
