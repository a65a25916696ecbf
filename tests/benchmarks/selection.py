"""Choosing from what is stored, against what the data stack needs at least for the same rows.

    python -m tests.benchmarks.selection

- what-if: a million samples of eight steps with stored Gram matrices: another alpha, new scores and a subset of 20 %,
  against Polars reading the same Parquet columns. Both from a warm cache; starting up and the comparison with the
  current subset are left out. Peak memory is that of a process that does nothing else.
- select: 20 % of a million ready scores, against Polars sorting the same frame.
- K-center greedy: 100,000 vectors of 384 to 5 %, against the plain numpy loop, whose time is that of its first picks
  times their number.
- round robin: 100,000 samples over 1,000 validation samples until all are taken (and until a fifth is), against the
  plain loop (all similarities, then in every turn the best of what remains), timed over its first turns likewise.
- grape: selecting the best response of each prompt, of 1.3 million responses to 575,000 prompts, against DuckDB's
  `arg_max` by group over the same file.

Ratios are of the wall clock, and (`_cpu`) of the CPU times of the process. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import duckdb
import numpy as np
import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Budget, Subset
from curation_assets.corpus.duplicates import resolve_duplicates
from curation_assets.methods.grace import GraceScore
from curation_assets.methods.grape import GrapeScore
from curation_assets.methods.method import ScoreSection
from curation_assets.methods.selectors.candidates import SelectorSection
from curation_assets.methods.selectors.k_center import k_center
from curation_assets.methods.selectors.per_prompt import PerPrompt
from curation_assets.methods.selectors.round_robin import round_robin
from curation_assets.methods.selectors.top import Top
from curation_assets.methods.vectors import unit
from curation_assets.subsets.choose_in_duckdb import POOL_COLUMNS, choose
from curation_assets.subsets.what_if import derive
from curation_assets.tables.signals import SignalName
from curation_resources.storage.part_store import Measurements
from curation_resources.storage.spill import spilling
from curation_resources.storage.warehouse import Warehouse
from tests.benchmarks.common import alternate_clocks, finish, parser, ratios, table

Result = TypeVar("Result")

STEPS = 8
SHARDS = 20
PART_ROWS = 20_000
GIB = 2**30
SELECTION_MEMORY_MIB = 2048
SIGNAL = "signals/step_gradients"
READS = ("sample_id", "n_steps", "gram", "segment_tokens")


def ids_of(numbers: np.ndarray) -> pl.Series:
    """Ids as real ones are: 128 bits that have nothing to do with the order of rows."""
    mixed = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019)
    return pl.Series([f"{high:016x}{low:016x}" for high, low in zip(mixed.tolist(), mixed[::-1].tolist(), strict=True)])


def write_workspace(folder: Path, samples: int) -> None:
    """`sample_scores` a shard and `step_gradients` in parts, as measuring writes them."""
    warehouse, rng = Warehouse(folder), np.random.default_rng(0)
    store = Measurements(warehouse, SIGNAL)
    sample_ids = ids_of(np.arange(samples))
    pairs = np.triu_indices(STEPS + 1)
    for start in range(0, samples, PART_ROWS):
        ids = sample_ids.slice(start, PART_ROWS)
        g = rng.normal(size=(len(ids), STEPS + 1, 6)).astype(np.float32)
        gram = np.einsum("nid,njd->nij", g, g)
        rows = pl.DataFrame(
            {
                "sample_id": ids,
                "n_steps": pl.Series(np.full(len(ids), STEPS, dtype=np.int32)),
                "step_indices": pl.Series(np.tile(np.arange(1, STEPS + 1, dtype=np.int32), (len(ids), 1))),
                "gram": pl.Series(gram[:, pairs[0], pairs[1]]),
                "norms": pl.Series(np.sqrt(np.einsum("nii->ni", gram))),
                "segment_tokens": pl.Series(rng.integers(5, 40, (len(ids), STEPS + 1), dtype=np.int32)),
                "response_tokens": pl.Series(rng.integers(50, 400, len(ids), dtype=np.int32)),
                "tokens": pl.Series(rng.integers(100, 500, len(ids), dtype=np.int32)),
                "flags": pl.Series([[]] * len(ids), dtype=pl.List(pl.String)),
            }
        ).with_columns(pl.col("step_indices", "gram", "norms", "segment_tokens").arr.to_list())
        store.append(tables.STEP_GRADIENTS.conform(rows))
    for number, rows in enumerate(_shards(sample_ids, rng)):
        warehouse.write_table(f"scores/{number:03d}.parquet", tables.SAMPLE_SCORES.conform(rows), {})


def _shards(sample_ids: pl.Series, rng: np.random.Generator) -> Iterator[pl.DataFrame]:
    size = -(-len(sample_ids) // SHARDS)
    for start in range(0, len(sample_ids), size):
        ids = sample_ids.slice(start, size)
        yield pl.DataFrame(
            {
                "sample_id": ids,
                "prompt_id": ids.str.reverse(),
                "shard": pl.repeat(f"shard-{start:07d}.jsonl", len(ids), eager=True),
                "row": pl.int_range(len(ids), eager=True),
                "candidate": pl.zeros(len(ids), dtype=pl.Int32, eager=True),
                "source": pl.Series(rng.choice(["gsm8k", "math", "aqua"], len(ids))),
                "n_steps": pl.repeat(STEPS, len(ids), dtype=pl.Int32, eager=True),
                "response_tokens": pl.Series(rng.integers(50, 400, len(ids), dtype=np.int32)),
                "answer_norm": pl.Series(rng.random(len(ids), dtype=np.float32)),
                "flags": pl.Series([[]] * len(ids), dtype=pl.List(pl.String)),
                "grace": pl.Series(rng.random(len(ids))),
            }
        ).with_columns(
            domain=pl.lit(None, dtype=pl.String),
            generator=pl.lit(None, dtype=pl.String),
            correct=pl.lit(None, dtype=pl.Boolean),
            verified=pl.lit(None, dtype=pl.Boolean),
            reward=pl.lit(None, dtype=pl.Float64),
        )


def _scan(folder: Path, name: str) -> pl.LazyFrame:
    found = Warehouse(folder).scan(name)
    assert found is not None
    return found


def read(folder: Path) -> None:
    """What Polars needs for the columns that a what-if looks at."""
    _scan(folder, "scores").select(POOL_COLUMNS).collect()
    _scan(folder, SIGNAL).select(READS).collect()


def what_if(folder: Path) -> pl.DataFrame:
    """Another alpha, new scores, a subset of 20 %."""
    score = GraceScore(name="grace", target="t", alpha=0.5)
    signals: dict[SignalName, pl.DataFrame] = {"step_gradients": _scan(folder, SIGNAL).select(READS).collect()}
    pool = resolve_duplicates(_scan(folder, "scores").select(POOL_COLUMNS))
    return chosen(derive(pool.rows, signals, score), score, Top())


def chosen(scored: pl.DataFrame, score: ScoreSection, selector: SelectorSection, fraction: float = 0.2) -> pl.DataFrame:
    """Select a subset, with all the facts about its selection."""
    subset, pieces = Subset(name="s", score=score.name, budget=Budget(fraction=fraction)), list[pl.DataFrame]()
    with tempfile.TemporaryDirectory() as place, spilling(Path(place), SELECTION_MEMORY_MIB) as spill:
        choose(spill, [scored], score, selector, subset, pieces.append, duplicates=0)
    return pl.concat(pieces)


def what_if_figures(folder: Path, samples: int, rounds: int) -> dict[str, object]:
    """Time against reading, and peak memory."""
    write_workspace(folder, samples)
    assert len(what_if(folder)) == -(-samples // 5)
    clocks = alternate_clocks({"read": lambda: read(folder), "what if": lambda: what_if(folder)}, rounds)
    command = [sys.executable, "-m", "tests.benchmarks.selection", "--what-if-in", str(folder)]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    return {
        **ratios("what_if_over_read", clocks["what if"], clocks["read"]),
        "what_if_peak_gib": round(peak / GIB, 2),
        "what_if_samples": samples,
    }


def selection_figures(samples: int, rounds: int) -> dict[str, object]:
    """Selecting from ready scores, against a bare sort."""
    rng = np.random.default_rng(1)
    pool = pl.concat(_shards(ids_of(np.arange(samples)), rng)).rename({"grace": "score"}).select(*POOL_COLUMNS, "score")
    score = GraceScore(name="grace", target="t")
    sides: dict[str, Callable[[], object]] = {
        "sort": lambda: pool.sort("score", descending=True),
        "select": lambda: chosen(pool, score, Top()),
    }
    clocks = alternate_clocks(sides, rounds)
    return ratios("select_over_sort", clocks["select"], clocks["sort"])


def grape_figures(folder: Path, responses: int, rounds: int) -> dict[str, object]:
    """Select the best response of each prompt, against DuckDB's `arg_min` by group over the same file."""
    rng = np.random.default_rng(2)
    prompts = ids_of(np.arange(max(1, responses * 575 // 1300)))
    file = folder / "grape.parquet"
    frame = pl.concat(_shards(ids_of(np.arange(responses)), rng)).with_columns(
        prompt_id=prompts.gather(rng.integers(0, len(prompts), responses)),
        score=-pl.Series(rng.gamma(2.0, 0.4, responses)),
    )
    frame.select(*POOL_COLUMNS, "score").write_parquet(file)
    grape = GrapeScore(name="grape", target="t")

    def ours() -> pl.DataFrame:
        return chosen(pl.read_parquet(file), grape, PerPrompt(), fraction=1.0)

    def theirs() -> pl.DataFrame:
        query = f"select prompt_id, arg_max(sample_id, score) as sample_id from '{file}' group by prompt_id"
        found = duckdb.sql(query)
        assert found is not None
        return pl.DataFrame(found.pl())

    singles = frame.group_by("prompt_id").len().filter(pl.col("len") == 1)
    expected = theirs().join(singles, on="prompt_id", how="anti")
    assert set(ours()["sample_id"].to_list()) == set(expected["sample_id"].to_list())
    clocks = alternate_clocks({"DuckDB": theirs, "ours": ours}, rounds)
    return ratios("grape_over_duckdb", clocks["ours"], clocks["DuckDB"])


def k_center_figures(samples: int, dimension: int) -> dict[str, object]:
    """Farthest first, against distances to every new centre from all samples, one after another."""
    vectors = np.random.default_rng(3).normal(size=(samples, dimension)).astype(np.float32)
    # Clusters, as embeddings have them.
    vectors += 2.0 * np.random.default_rng(4).normal(size=(50, dimension))[np.arange(samples) % 50].astype(np.float32)
    count, few = samples // 20, min(40, samples // 20)
    rank = np.arange(samples)
    order, seconds = _timed(lambda: k_center(vectors, count, 0, rank))

    def plain() -> list[int]:
        chosen, nearest = [0], np.linalg.norm(vectors - vectors[0], axis=1)
        while len(chosen) < few:
            chosen.append(int(nearest.argmax()))
            nearest = np.minimum(nearest, np.linalg.norm(vectors - vectors[chosen[-1]], axis=1))
        return chosen

    chosen, plain_seconds = _timed(plain)
    assert chosen == order[:few].tolist()
    return {"k_center_speedup": round(plain_seconds / few * count / seconds, 1)}


def round_robin_figures(samples: int, validation: int, dimension: int) -> dict[str, object]:
    """Turns over sorted lists, against a look at all that remains in every turn."""
    rng = np.random.default_rng(5)
    vectors, held = rng.normal(size=(samples, dimension)), rng.normal(size=(validation, dimension))
    vectors, held = vectors.astype(np.float32), held.astype(np.float32)
    few = min(2000, samples // 5)
    rank = np.arange(samples)
    order, seconds = _timed(lambda: round_robin(vectors, held, samples, rank))
    _, fifth_seconds = _timed(lambda: round_robin(vectors, held, samples // 5, rank))
    similarities, product = _timed(lambda: np.ascontiguousarray((unit(vectors) @ unit(held).T).T))

    def plain() -> list[int]:
        chosen: list[int] = []
        while len(chosen) < few:
            row = similarities[len(chosen) % validation]
            best = int(np.where(taken, -np.inf, row).argmax())
            taken[best] = True
            chosen.append(best)
        return chosen

    taken = np.zeros(samples, dtype=np.bool_)
    chosen, plain_seconds = _timed(plain)
    assert np.mean(np.array(chosen) == order[:few]) > 0.99  # products of other shapes round otherwise
    turn = plain_seconds / few
    return {
        "round_robin_speedup": round((product + turn * samples) / seconds, 1),
        "round_robin_speedup_fifth": round((product + turn * samples / 5) / fifth_seconds, 1),
    }


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__)
    arguments.add_argument("--what-if-in", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.what_if_in is not None:
        what_if(options.what_if_in)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    samples = 20_000 if options.small else 1_000_000
    with tempfile.TemporaryDirectory() as place:
        result = what_if_figures(Path(place), samples, options.rounds)
        result |= selection_figures(samples, options.rounds)
        result |= grape_figures(Path(place), samples * 13 // 10, options.rounds)
    result |= k_center_figures(samples // 10, 32 if options.small else 384)
    result |= round_robin_figures(samples // 10, samples // 1000, 32 if options.small else 384)
    print(table(("figure", "value"), list(result.items())))
    finish("selection", result, options)


if __name__ == "__main__":
    main()
