"""Tokens per second of the pass, all signals on, against batch budget, length, vocabulary and steps.

    python -m tests.benchmarks.scaling

Within a group the sides run in turn, and each is compared with the group's first. The last line is one JSON
object: for every group the relative tokens per second by value, and `steps_200_over_8`, the time of a trace of
4,096 tokens with 200 steps over that of one with 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from curation_resources.scoring.forward import ForwardPass
from curation_resources.scoring.loading import Checkpoint
from curation_resources.scoring.samples import Encoded
from tests.benchmarks.common import alternate, even_samples, finish, gsm8k_samples, median_ratio, parser, qwen2, table
from tests.benchmarks.forward import ALL, BATCH_TOKENS

GROUPS = ("batch_tokens", "length", "steps", "vocabulary")

Side = tuple[Callable[[], object], int]


def side(checkpoint: Checkpoint, samples: Sequence[Encoded], budget: int = BATCH_TOKENS) -> Side:
    """A pass over samples, and their tokens."""

    def run() -> None:
        for _ in ForwardPass(checkpoint, None, budget).measure_encoded(samples, ALL):  # type: ignore[arg-type]
            pass

    return run, sum(len(sample) for sample in samples)


def groups(small: bool) -> dict[str, dict[int, Side]]:
    """What is compared with what."""
    vocabulary = 1000 if small else 32_000

    def make(size: int) -> Checkpoint:
        return qwen2(size, hidden=64 if small else 512, layers=1 if small else 4)[1]

    checkpoint = make(vocabulary)
    tokens = 1024 if small else 4096
    rows = gsm8k_samples(8 if small else 48, vocabulary)
    return {
        "batch_tokens": {budget: side(checkpoint, rows, budget) for budget in (2048, 256, 1024, 8192)},
        "length": {
            length: side(checkpoint, even_samples(tokens // length, length, 8, vocabulary))
            for length in (256, 64, 1024, tokens)
        },
        "steps": {steps: side(checkpoint, even_samples(1, tokens, steps, vocabulary)) for steps in (8, 1, 64, 200)},
        "vocabulary": {
            size: side(make(size), even_samples(4, 256, 8, size))
            for size in ((1000, 2000) if small else (32_000, 8_000, 152_000))
        },
    }


def main() -> None:
    """Run every group and print its table."""
    made = parser(__doc__)
    made.add_argument("--only", choices=GROUPS, help="one group alone")
    options = made.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    result: dict[str, object] = {}
    chosen = groups(options.small)
    for name in [options.only] if options.only else GROUPS:
        sides = chosen[name]
        seconds = alternate({str(value): run for value, (run, _) in sides.items()}, options.rounds)
        first, (_, first_tokens) = next(iter(sides.items()))
        relative = {
            str(value): round(median_ratio(seconds[str(first)], seconds[str(value)]) * tokens / first_tokens, 3)
            for value, (_, tokens) in sides.items()
        }
        speeds = [
            (value, tokens, f"{tokens / min(seconds[str(value)]):.0f}", relative[str(value)])
            for value, (_, tokens) in sides.items()
        ]
        print(table((name, "tokens", "tokens/s, best round", f"relative to {first}"), speeds), end="\n\n")
        result[f"tokens_per_second_by_{name}"] = relative
        if name == "steps":
            result["steps_200_over_8"] = median_ratio(seconds["200"], seconds["8"])
    finish("scaling", result, options)


if __name__ == "__main__":
    main()
