"""Results of an evaluation: exact match and loss per benchmark, relative averages, and their intervals over seeds.

Intervals are confidence intervals of means: Student's t over seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

import polars as pl

from curation_assets.config.evaluation_settings import Metric
from curation_assets.evaluation.arms import UNTOUCHED_BASE
from curation_assets.evaluation.benchmarks import Problems
from curation_assets.evaluation.concordance import student_t
from curation_assets.evaluation.differences import compare_arms, mean_of_problems, problem_values
from curation_assets.evaluation.keys import results_path
from curation_assets.evaluation.runs import STABILITY, Plan, make_runs, plan_evaluation
from curation_assets.tables.evaluation import (
    POST_TRAINING_EVAL,
    POST_TRAINING_RUNS,
    RELATIVE_AVERAGE,
    post_training_differences_path,
    post_training_eval_path,
    post_training_runs_path,
    post_training_spread_path,
)
from curation_assets.workspace.workspace import Workspace
from curation_resources.scoring.samples import NON_FINITE
from curation_resources.storage.digests import digest

CONFIDENCE = 0.95
ONE_RUN = "one run: an interval requires at least two seeds"
NOTHING_DRAWN = "one run: no random draw is involved"
BY_SEED = dict[int | None, float | None]
"""Exact match in percent or loss in nats, by seed; None if it is undefined."""

NO_LOSS = "no loss: it is not finite on a problem, or no response could be measured (post_training_losses.flag)"


class Results(NamedTuple):
    """The tables of an evaluation: `post_training_eval`, `post_training_spread` and `post_training_differences`."""

    arms: pl.DataFrame
    spread: pl.DataFrame
    differences: pl.DataFrame


def stored_results(workspace: Workspace) -> Results:
    """Return the results of the last evaluation."""
    paths = (post_training_eval_path(), post_training_spread_path(), post_training_differences_path())
    return Results(*map(workspace.warehouse.read_table, paths))


def write_evaluation(
    workspace: Workspace, seeds: Sequence[int] | None = None, subsets: Sequence[str] | None = None
) -> pl.DataFrame:
    """Train and evaluate missing runs, write the tables `post_training_*`, and return `post_training_eval`.

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
    spread, differences = compare_arms(workspace, plan)
    metadata = {"fingerprint": digest("post_training_eval", [key for _, key in plan.runs], plan.evaluation.seeds)}
    workspace.warehouse.write_table(post_training_runs_path(), runs, metadata)
    workspace.warehouse.write_table(post_training_spread_path(), spread, metadata)
    workspace.warehouse.write_table(post_training_differences_path(), differences, metadata)
    workspace.warehouse.write_table(post_training_eval_path(), frame, metadata)
    return frame


def runs_table(workspace: Workspace, plan: Plan) -> pl.DataFrame:
    """Return table `post_training_runs`, from the stored results of a completed plan."""
    rows: list[dict[str, Any]] = []
    for run, key in plan.runs:
        of_benchmark: dict[str, list[Problems]] = {}
        for problems in plan.benchmarks:
            of_benchmark.setdefault(problems.name, []).append(problems)
        for name, metrics in of_benchmark.items():
            path = results_path(key, metrics[0], plan.evaluation)
            row = {
                "model": run.model,
                "arm": run.arm,
                "kind": run.kind,
                "selected_by": run.selected_by,
                "seed": run.seed,
                "benchmark": name,
                "items": max(len(problems.items) + problems.left_out for problems in metrics),
                # Runs of earlier versions have no stability values.
                **dict.fromkeys(STABILITY),
                **json.loads(workspace.warehouse.table_metadata(path)["facts"]),
                "run": key,
            }
            for problems in metrics:
                row |= _results(workspace, key, problems, plan)
            rows.append(row)
    return POST_TRAINING_RUNS.conform(pl.DataFrame(rows, schema=POST_TRAINING_RUNS.schema))


def _results(workspace: Workspace, key: str, problems: Problems, plan: Plan) -> dict[str, Any]:
    """Return a run's results on a benchmark for one metric, by column of `post_training_runs`."""
    path = results_path(key, problems, plan.evaluation)
    if problems.metric == "loss":
        values = problem_values(workspace, key, problems, plan)
        flags = workspace.warehouse.read_columns(path, "flag")["flag"]
        mean = mean_of_problems(values)
        undefined = math.isnan(mean) or bool(flags.str.contains(NON_FINITE).any())
        known = sum(not math.isnan(value) for value in values)
        return {"measured": known, "held_out_loss": None if undefined else mean}
    answers = workspace.warehouse.read_columns(path, "right", "answer", "finished")
    right = int(answers["right"].sum())
    return {
        "right": right,
        "answered": int(answers["answer"].is_not_null().sum()),
        "finished": int(answers["finished"].sum()),
        "exact_match": right / len(answers),
    }


def summarise(runs: pl.DataFrame) -> pl.DataFrame:
    """Return table `post_training_eval` for `post_training_runs`, with the arms in their order."""
    rows: list[dict[str, Any]] = []
    for model in runs["model"].unique(maintain_order=True):
        of_model = runs.filter(pl.col("model") == model)
        full = {name: _mean(by_seed) for name, by_seed in _by_seed(of_model.filter(kind="full"), "exact_match").items()}
        for arm in of_model["arm"].unique(maintain_order=True):
            mine = of_model.filter(pl.col("arm") == arm)
            matches, losses = _by_seed(mine, "exact_match"), _by_seed(mine, "loss")
            facts = mine.row(0, named=True)
            tokens = int(mine.unique(["seed"])["tokens"].sum())
            found: dict[tuple[str, str], Interval] = {}
            for name in mine["benchmark"].unique(maintain_order=True):
                if name in matches:
                    found[name, "exact_match"] = _interval(arm, list(matches[name].values()))
                if name in losses:
                    found[name, "loss"] = _interval(arm, list(losses[name].values()))
            if matches:
                found[RELATIVE_AVERAGE, RELATIVE_AVERAGE] = _relative(arm, matches, full)
            rows += [
                {name: facts[name] for name in ("model", "arm", "kind", "selected_by", "samples")}
                | {"benchmark": name, "metric": metric, "tokens": tokens, "seeds": mine["seed"].n_unique()}
                | one._asdict()
                for (name, metric), one in found.items()
            ]
    return POST_TRAINING_EVAL.conform(pl.DataFrame(rows, schema=POST_TRAINING_EVAL.schema))


def _by_seed(runs: pl.DataFrame, metric: Metric) -> dict[str, BY_SEED]:
    """Return a metric by benchmark and seed, of the benchmarks that have it."""
    asked, column, factor = ("measured", "held_out_loss", 1.0) if metric == "loss" else ("right", "exact_match", 100.0)
    found: dict[str, BY_SEED] = {}
    with_it = runs.filter(pl.col(asked).is_not_null()).select("benchmark", "seed", factor * pl.col(column))
    for benchmark, seed, value in with_it.iter_rows():
        found.setdefault(benchmark, {})[seed] = value
    return found


def _mean(by_seed: BY_SEED) -> float:
    return fmean(value for value in by_seed.values() if value is not None)


def _interval(arm: str, values: Sequence[float | None]) -> Interval:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return Interval(None, None, None, NO_LOSS)
    found = interval(known)
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
    values = [fmean(100.0 * (of[seed] or 0.0) / full[name] for name, of in matches.items()) for seed in seeds]
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
