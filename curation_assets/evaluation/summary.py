"""Results of an evaluation: exact match per benchmark, relative averages, and their intervals over seeds.

Intervals are confidence intervals of means: Student's t over seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

import polars as pl

from curation_assets.evaluation.arms import UNTOUCHED_BASE
from curation_assets.evaluation.keys import answers_path
from curation_assets.evaluation.runs import STABILITY, Plan, make_runs, plan_evaluation
from curation_assets.tables.evaluation import (
    POST_TRAINING_EVAL,
    POST_TRAINING_RUNS,
    RELATIVE_AVERAGE,
    post_training_eval_path,
    post_training_runs_path,
)
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.digests import digest

CONFIDENCE = 0.95
ONE_RUN = "one run: an interval requires at least two seeds"
HALVINGS = 80
"""Bisection steps over the angle: enough to reach double precision."""

NOTHING_DRAWN = "one run: no random draw is involved"
BY_SEED = dict[int | None, float]
"""Exact match in percent, by seed."""


def write_evaluation(
    workspace: Workspace, seeds: Sequence[int] | None = None, subsets: Sequence[str] | None = None
) -> pl.DataFrame:
    """Train and evaluate missing runs, write `post_training_runs` and `post_training_eval`, and return the latter.

    Args:
        workspace: the configuration.
        seeds: seeds that replace the configured ones.
        subsets: subsets that replace the configured ones.

    Raises:
        EvaluationError: see `plan_evaluation` and `make_runs`.
    """
    plan = plan_evaluation(workspace, seeds, subsets)
    make_runs(workspace, plan)
    runs = runs_table(workspace, plan)
    frame = summarise(runs)
    metadata = {"fingerprint": digest("post_training_eval", [key for _, key in plan.runs], plan.evaluation.seeds)}
    workspace.warehouse.write_table(post_training_runs_path(), runs, metadata)
    workspace.warehouse.write_table(post_training_eval_path(), frame, metadata)
    return frame


def runs_table(workspace: Workspace, plan: Plan) -> pl.DataFrame:
    """Return table `post_training_runs`, from the stored answers of a completed plan."""
    rows: list[dict[str, Any]] = []
    for run, key in plan.runs:
        for problems in plan.benchmarks:
            path = answers_path(key, problems, plan.evaluation)
            answers = workspace.warehouse.read_columns(path, "right", "answer", "finished")
            right = int(answers["right"].sum())
            rows.append(
                {
                    "model": run.model,
                    "arm": run.arm,
                    "kind": run.kind,
                    "selected_by": run.selected_by,
                    "seed": run.seed,
                    "benchmark": problems.name,
                    "items": len(answers),
                    "right": right,
                    "answered": int(answers["answer"].is_not_null().sum()),
                    "finished": int(answers["finished"].sum()),
                    "exact_match": right / len(answers),
                    # Runs of earlier versions have no stability values.
                    **dict.fromkeys(STABILITY),
                    **json.loads(workspace.warehouse.table_metadata(path)["facts"]),
                    "run": key,
                }
            )
    return POST_TRAINING_RUNS.conform(pl.DataFrame(rows, schema=POST_TRAINING_RUNS.schema))


def summarise(runs: pl.DataFrame) -> pl.DataFrame:
    """Return table `post_training_eval` for `post_training_runs`, with the arms in their order."""
    rows: list[dict[str, Any]] = []
    for model in runs["model"].unique(maintain_order=True):
        of_model = runs.filter(pl.col("model") == model)
        full = {name: fmean(found.values()) for name, found in _matches(of_model.filter(kind="full")).items()}
        for arm in of_model["arm"].unique(maintain_order=True):
            mine = of_model.filter(pl.col("arm") == arm)
            matches = _matches(mine)
            facts = mine.row(0, named=True)
            tokens = int(mine.unique(["seed"])["tokens"].sum())
            found = {name: _interval(arm, list(values.values())) for name, values in matches.items()}
            found[RELATIVE_AVERAGE] = _relative(arm, matches, full)
            rows += [
                {name: facts[name] for name in ("model", "arm", "kind", "selected_by", "samples")}
                | {"benchmark": name, "tokens": tokens, "seeds": mine["seed"].n_unique()}
                | one._asdict()
                for name, one in found.items()
            ]
    return POST_TRAINING_EVAL.conform(pl.DataFrame(rows, schema=POST_TRAINING_EVAL.schema))


def _matches(runs: pl.DataFrame) -> dict[str, BY_SEED]:
    """Return exact match in percent, by benchmark and seed."""
    found: dict[str, BY_SEED] = {}
    for benchmark, seed, share in runs.select("benchmark", "seed", "exact_match").iter_rows():
        found.setdefault(benchmark, {})[seed] = 100.0 * share
    return found


def _interval(arm: str, values: Sequence[float]) -> Interval:
    found = interval(values)
    return found._replace(reason=NOTHING_DRAWN) if arm == UNTOUCHED_BASE else found


def _relative(arm: str, matches: Mapping[str, BY_SEED], full: Mapping[str, float]) -> Interval:
    """Return the mean over benchmarks of 100 m / m_full, by seed; m_full is the full pool's mean over its seeds.

    If m_full is 0, the ratio and hence the mean are undefined: excluding a benchmark would change what is averaged.
    """
    without = [name for name in matches if not full[name] > 0]
    if without:
        which = ", ".join(without)
        return Interval(
            None, None, None, f"the full pool has no correct answer on {which}, so 100 m / m_full is undefined"
        )
    seeds = list(next(iter(matches.values())))
    values = [fmean(100.0 * of[seed] / full[name] for name, of in matches.items()) for seed in seeds]
    return _interval(arm, values)


class Interval(NamedTuple):
    """A mean with the ends of its interval; undefined values are None, and the reason is given."""

    mean: float | None
    low: float | None
    high: float | None
    reason: str | None = None


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the mean, plus and minus t s / sqrt(n): the interval for n normal values of unknown deviation.

    s is the standard deviation with n - 1, and t the quantile of Student's distribution with n - 1 degrees of
    freedom.
    """
    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean, None, None, ONE_RUN)
    half = student_t(confidence, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def student_t(confidence: float, freedom: int) -> float:
    """Return the t that |T| stays below with this probability, for T from Student's distribution.

    It bisects the angle atan(t / sqrt(n)), in which the distribution is a finite sum.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _within(angle: float, freedom: int) -> float:
    """Return P(|T| < sqrt(n) tan(angle)) (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    square, sine = math.cos(angle) ** 2, math.sin(angle)
    if freedom % 2:
        term, total = math.cos(angle), 0.0
        for number in range(1, (freedom - 1) // 2 + 1):
            total += term
            term *= square * 2 * number / (2 * number + 1)
        return 2 / math.pi * (angle + sine * total)
    term, total = 1.0, 0.0
    for number in range(1, freedom // 2 + 1):
        total += term
        term *= square * (2 * number - 1) / (2 * number)
    return sine * total
