"""Differences between arms, by a paired bootstrap over problems, and the spread between random draws.

The spread is the yardstick: two random draws of one size differ by chance alone, so a difference within it says nothing
about a method.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from curation_assets.config.evaluation_settings import Metric
from curation_assets.evaluation.arms import FULL_POOL, Run
from curation_assets.evaluation.benchmarks import Problems
from curation_assets.evaluation.keys import results_path
from curation_assets.evaluation.runs import Plan
from curation_assets.tables.evaluation import POST_TRAINING_DIFFERENCES, POST_TRAINING_SPREAD
from curation_assets.workspace.workspace import Workspace

CONFIDENCE = 0.95
DRAWS = 2000
SEED = 0
MOST_INDICES = 2**22
"""Indices that are drawn at once, whatever the number of problems."""

RESULTS: dict[Metric, tuple[str, float]] = {"exact_match": ("right", 100.0), "loss": ("loss", 1.0)}
"""By metric, the column of the stored results that holds a problem's value, and its factor: percent, or nats."""

Floats = npt.NDArray[np.float64]


def problem_values(workspace: Workspace, key: str, problems: Problems, plan: Plan) -> Floats:
    """Return a run's value on each problem [problems]: 100 or 0 for exact match, nats for loss; NaN if it has none."""
    column, factor = RESULTS[problems.metric]
    stored = workspace.warehouse.read_columns(results_path(key, problems, plan.evaluation), column)[column]
    return factor * stored.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def compare_arms(workspace: Workspace, plan: Plan) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return tables `post_training_spread` and `post_training_differences` of a completed plan."""
    spreads: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    for model in dict.fromkeys(run.model for run, _ in plan.runs):
        for problems in plan.benchmarks:
            where = {"model": model, "benchmark": problems.name, "metric": problems.metric}
            arms: dict[str, list[tuple[Run, Floats]]] = {}
            for run, key in plan.runs:
                if run.model == model:
                    arms.setdefault(run.arm, []).append((run, problem_values(workspace, key, problems, plan)))
            ranges: dict[str, float | None] = {}
            for arm, made in arms.items():
                draws = [values for _, values in made]
                if arm == made[0][0].random and _comparable(draws):
                    found = spread([mean_of_problems(values) for values in draws])
                    spreads.append(where | {"arm": arm} | found)
                    ranges[arm] = found["range"]
            differences += [where | row for row in _differences(arms, ranges)]
    return (
        POST_TRAINING_SPREAD.conform(pl.DataFrame(spreads, schema=POST_TRAINING_SPREAD.schema)),
        POST_TRAINING_DIFFERENCES.conform(pl.DataFrame(differences, schema=POST_TRAINING_DIFFERENCES.schema)),
    )


def _comparable(runs: Sequence[Floats]) -> bool:
    """Return whether runs have values on the same problems, of which there are any.

    A problem that cannot be run has no value in any run; one that only some runs lack was not finite there.
    """
    known = [~np.isnan(values) for values in runs]
    return bool(known[0].any()) and all(np.array_equal(known[0], other) for other in known)


def mean_of_problems(values: Floats) -> float:
    """Return the mean over problems with a value; NaN if there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def spread(draws: Sequence[float]) -> dict[str, Any]:
    """Return number, mean, standard deviation (n - 1) and range of random draws."""
    several = len(draws) > 1
    return {
        "draws": len(draws),
        "mean": fmean(draws),
        "deviation": stdev(draws) if several else None,
        "range": max(draws) - min(draws) if several else None,
    }


def _differences(arms: dict[str, list[tuple[Run, Floats]]], ranges: dict[str, float | None]) -> list[dict[str, Any]]:
    """Return each arm's differences from its random baseline and from the full pool."""
    # Seeds first: the problems are what is drawn.
    means = {arm: np.mean([values for _, values in made], axis=0) for arm, made in arms.items()}
    rows = []
    for arm, made in arms.items():
        same_size = made[0][0].random
        for other in (same_size, FULL_POOL):
            if other is None or other == arm or other not in means:
                continue
            paired = np.empty(0)
            if _comparable([means[arm], means[other]]):
                paired = means[arm] - means[other]
                paired = paired[~np.isnan(paired)]
            low, high = bootstrap(paired)
            difference = float(paired.mean()) if len(paired) else None
            largest = None if same_size is None else ranges.get(same_size)
            rows.append(
                {
                    "arm": arm,
                    "kind": made[0][0].kind,
                    "against": other,
                    "difference": difference,
                    "low": low,
                    "high": high,
                    "problems": len(paired),
                    "spread": largest,
                    "within_spread": None if difference is None or largest is None else abs(difference) <= largest,
                }
            )
    return rows


def bootstrap(
    differences: Floats, draws: int = DRAWS, confidence: float = CONFIDENCE, seed: int = SEED
) -> tuple[float | None, float | None]:
    """Return the percentile interval of a mean difference, over problems drawn with replacement.

    Every comparison of a benchmark uses the same draws.

    Args:
        differences: one paired difference per problem [problems].
        draws: number of bootstrap draws.
        confidence: probability of the interval.
        seed: seed of the draws.

    Returns:
        Both ends; None for fewer than two problems.
    """
    count = len(differences)
    if count < 2:
        return None, None
    generator = np.random.default_rng(seed)
    means = np.empty(draws)
    at_once = max(1, MOST_INDICES // count)
    for start in range(0, draws, at_once):
        rows = min(at_once, draws - start)
        means[start : start + rows] = differences[generator.integers(count, size=(rows, count))].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
