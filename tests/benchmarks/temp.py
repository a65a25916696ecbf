"""What TEMP's early losses cost: early exit, eight perturbed checkpoints, changing weights and back.

    python -m tests.benchmarks.temp

  early exit    l_100 alone, over its ideal share of a pass that runs the whole sequences for the loss of every token:
                the share of tokens that it has to run, (100 + prompt) / length
  checkpoints   l_100 and l_1000 at eight directional checkpoints, weights changed and restored, over one pass with the
                same windows; the model is loaded once
  weights       one directional step over all weights (noise drawn, fp32, on the CPU) and back, over one copy of them;
                the same at random, but for embeddings

The model has random weights. The last line is one JSON object; ratios are medians over rounds that run every side in
turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from curation_resources.scoring.endpoints import Direction
from curation_resources.scoring.forward import ForwardPass
from curation_resources.scoring.loading import Checkpoint
from curation_resources.scoring.perturbed import PerturbedPass
from curation_resources.scoring.perturbing import Perturber
from curation_resources.scoring.samples import ANSWER, Encoded, PerturbedRequest, PrefixWindows, Request
from curation_resources.scoring.weights import weights_of
from tests.benchmarks.common import alternate, encoded, finish, median_ratio, parser, qwen2, table

BATCH_TOKENS = 2048
COPIES = 10
"""Copies that are timed together: one alone is too short."""

EARLY = Request(prefix_losses=PrefixWindows((100,)))
FULL = Request(token_likelihoods=True)
PATH = Request(prefix_losses=PrefixWindows((100, 1000)))


def made_samples(count: int, prompt: int, reasoning: int, vocabulary: int) -> list[Encoded]:
    """Samples of one length: a prompt, reasoning in one step, an answer of eight tokens."""
    segments = [(1, reasoning), (ANSWER, 8)]
    return [encoded(f"s{number}", prompt, segments, vocabulary, number) for number in range(count)]


def made_direction(model: Any) -> Direction:
    """A random direction over all weights."""
    generator = torch.Generator().manual_seed(1)
    tensors = {name: torch.randn(w.tensor.shape, generator=generator) for name, w in weights_of(model).items()}
    distance = math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors.values()))
    return Direction({name: tensor / distance for name, tensor in tensors.items()}, distance)


def run(checkpoint: Checkpoint, samples: Sequence[Encoded], request: Request) -> None:
    """One pass over encoded samples."""
    for results in ForwardPass(checkpoint, None, BATCH_TOKENS).measure_encoded(samples, request):  # type: ignore[arg-type]
        assert all(result.prefix_nll or result.token_nll is not None for result in results)


class Walk:
    """The weights of a model, and what is done to them."""

    def __init__(self, model: Any, perturber: Perturber) -> None:
        self.perturber = perturber
        self.weights = [weight.tensor for weight in weights_of(model).values()]
        self.copies = [torch.empty_like(weight) for weight in self.weights]

    def copy(self) -> None:
        """Copy all weights, `COPIES` times."""
        for _ in range(COPIES):
            for copy, weight in zip(self.copies, self.weights, strict=True):
                copy.copy_(weight)

    def step(self) -> None:
        """To the first directional checkpoint and back."""
        self.perturber.move_along(1)
        self.perturber.restore()

    def random(self) -> None:
        """To a random checkpoint and back."""
        self.perturber.move_randomly(0.005)
        self.perturber.restore()


def main() -> None:
    """Run the three comparisons and print them."""
    options = parser(__doc__).parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    shape = (1000, 64, 2, 128) if options.small else (32_000, 512, 4, 1408)
    model, checkpoint = qwen2(*shape)
    long = made_samples(2 if options.small else 8, 64, 1024, shape[0])
    window = made_samples(2 if options.small else 32, 64, 256, shape[0])
    perturber = Perturber(model, 0, made_direction(model))
    scoring = PerturbedPass(ForwardPass(checkpoint, None, BATCH_TOKENS), perturber)  # type: ignore[arg-type]
    walk = Walk(model, perturber)
    early = alternate(
        {"whole sequences": lambda: run(checkpoint, long, FULL), "l_100": lambda: run(checkpoint, long, EARLY)},
        options.rounds,
    )
    eight = alternate(
        {
            "one pass": lambda: run(checkpoint, window, PATH),
            "eight checkpoints": lambda: scoring.measure_encoded(window, PerturbedRequest(base=False)),
        },
        options.rounds,
    )
    weights = alternate({"copies": walk.copy, "a step and back": walk.step, "random": walk.random}, options.rounds)
    share = sum(min(len(item), item.prompt_tokens + 100) for item in long) / sum(map(len, long))
    rows = [
        (side, f"{min(times):.3f}", median_ratio(times, measured[of]))
        for measured, of in ((early, "whole sequences"), (eight, "one pass"), (weights, "copies"))
        for side, times in measured.items()
    ]
    elements = sum(weight.numel() for weight in walk.weights)
    print(f"Qwen2 of vocabulary, hidden size, layers, intermediate size {shape}, {elements} weights")
    print(table(("side", "seconds, best round", "time over the first of its kind"), rows))
    print(f"ideal share of l_100: {share:.4f}; copies: {COPIES}")
    finish(
        "temp",
        {
            "early_exit_overhead": round(median_ratio(early["l_100"], early["whole sequences"]) / share, 3),
            "eight_checkpoints_ratio": median_ratio(eight["eight checkpoints"], eight["one pass"]),
            "perturb_restore_over_copy": round(COPIES * median_ratio(weights["a step and back"], weights["copies"]), 2),
            "random_restore_over_copy": round(COPIES * median_ratio(weights["random"], weights["copies"]), 2),
        },
        options,
    )


if __name__ == "__main__":
    main()
