"""What segmenting a shard slice by slice saves over a loop with regular expressions over its rows.

    python -m tests.benchmarks.segmentation

Both sides cut the same generated traces, strategy by strategy, in turn: eight steps of 10 to 30 words, a line, a blank
line, a space or a number between them, an answer in one of four ways, a tenth of them inside `<think>`. The loop is
that of `tests/steps/plain_loop.py`; the tables have to be equal. `--rows` says how many traces there are.

The last line is one JSON object: the loop's time over ours for each strategy and the least of them (medians over
rounds), and the most memory that ours takes beside the corpus, the table that it gives included.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import polars as pl

from curation_assets.config.corpus_settings import Segmentation, Strategy
from curation_assets.steps.segmentation import segment_frame
from tests.benchmarks.common import alternate, finish, median_ratio, parser, table
from tests.benchmarks.memory import peak_bytes, reset_peak
from tests.steps.plain_loop import segment_frame_plainly

MIB = 2**20
TEXT = """the of we add two numbers then total number each apples sum first multiply gives result since there are 12 3.5
x y = + 17 48 because Natalia sold (so) half \\frac{1}{2} therefore, which means that price $5 costs"""
WORDS = TEXT.split()
ANSWERS = ("\n#### 42", "\nAnswer: 42", "\nSo the result is $\\boxed{42}$.", "\n\n**Final Answer:** 42")
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


def corpus(rows: int) -> pl.DataFrame:
    """Traces with listed steps, in no order of their names."""
    generator = random.Random(0)
    # Traces of steps drawn from a pool take little memory while they are made, and are as long as others.
    steps = [f"{' '.join(generator.choices(WORDS, k=generator.randint(10, 30))).capitalize()}." for _ in range(10_000)]
    parts = []
    for start in range(0, rows, 50_000):
        made = [_trace(number, generator.sample(steps, 8)) for number in range(start, min(rows, start + 50_000))]
        parts.append(pl.DataFrame(made, ["sample_id", "response", "steps", "answer"], orient="row"))
    return pl.concat(parts, rechunk=True)


def _trace(number: int, steps: Sequence[str]) -> tuple[str, str, list[str], str | None]:
    between = ("\n", "\n\n", " ", "\n")[number % 4]
    listed = [f"Step {place}: {step}" for place, step in enumerate(steps, 1)] if number % 4 == 3 else list(steps)
    text = between.join(listed)
    if number % 10 == 0:
        text = f"<think>\n{text}\n</think>\n"
    return (
        f"{number * 0x9E3779B97F4A7C15 % 2**64:032x}",
        text + ANSWERS[number // 4 % 4],
        listed,
        "42" if number % 2 else None,
    )


def peak_mib(frame: pl.DataFrame, values: Segmentation) -> float:
    """Peak memory of this process above what it held before, in MiB (Linux)."""
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")
    reset_peak()
    before = peak_bytes()
    segment_frame(frame, values)
    return (peak_bytes() - before) / MIB


def seconds_of(frame: pl.DataFrame, values: Segmentation, rounds: int) -> dict[str, list[float]]:
    """Seconds of `loop` and `slices` in every round.

    Raises:
        AssertionError: the two sides give different tables.
    """
    tables: dict[str, pl.DataFrame] = {}

    def slices() -> None:
        tables["slices"] = segment_frame(frame, values)

    def loop() -> None:
        tables["loop"] = segment_frame_plainly(frame, values)

    seconds = alternate({"loop": loop, "slices": slices}, rounds)
    assert tables["slices"].equals(tables["loop"]), values.strategy
    return seconds


def measure(rows: int, rounds: int) -> dict[str, float]:
    """The figures of the last line, from so many traces and rounds of each strategy.

    Raises:
        AssertionError: the two sides give different tables.
    """
    listed = corpus(rows)
    unlisted = listed.with_columns(steps=pl.lit(None, pl.List(pl.String)))
    result: dict[str, float] = {}
    peaks: list[float] = []
    for strategy in STRATEGIES:
        frame = listed if strategy == "explicit" else unlisted
        values = Segmentation(strategy=strategy)
        peaks.append(peak_mib(frame, values))
        seconds = seconds_of(frame, values, rounds)
        result[f"segmentation_speedup_{strategy}"] = median_ratio(seconds["loop"], seconds["slices"])
        result[f"segmentation_loop_us_per_trace_{strategy}"] = round(min(seconds["loop"]) / rows * 1e6, 2)
        result[f"segmentation_us_per_trace_{strategy}"] = round(min(seconds["slices"]) / rows * 1e6, 2)
    result["segmentation_speedup"] = min(result[f"segmentation_speedup_{strategy}"] for strategy in STRATEGIES)
    result["segmentation_peak_extra_mib"] = round(max(peaks), 1)
    result["segmentation_rows"] = rows
    return result


def report(result: dict[str, float]) -> str:
    """The figures as a table."""
    rows = [
        (
            strategy,
            f"{result[f'segmentation_loop_us_per_trace_{strategy}']:.1f}",
            f"{result[f'segmentation_us_per_trace_{strategy}']:.1f}",
            f"{result[f'segmentation_speedup_{strategy}']:.2f}",
        )
        for strategy in STRATEGIES
    ]
    header = ("strategy", "loop, µs per trace, best round", "slices, µs per trace, best round", "speed-up, median")
    return f"{result['segmentation_rows']:,.0f} traces of 8 steps\n{table(header, rows)}"


def options() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.set_defaults(rounds=3)
    made.add_argument(
        "--rows", type=int, default=40_000, help="traces; a million takes two hours, nearly all of them the loop's"
    )
    return made.parse_args()


def main() -> None:
    """Run both sides and print them."""
    chosen = options()
    result = measure(500 if chosen.small else chosen.rows, chosen.rounds)
    print(report(result))
    finish("segmentation", result, chosen)


if __name__ == "__main__":
    main()
