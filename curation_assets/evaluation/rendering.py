"""Render an evaluation in the terminal and in Markdown: spread of random draws, arms, and differences between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
from rich.console import Console

from curation_assets.evaluation.benchmarks import Problems
from curation_assets.evaluation.runs import Plan
from curation_assets.evaluation.summary import Results
from curation_assets.tables.evaluation import RELATIVE_AVERAGE
from curation_resources.terminal import simple_table

Rows = list[tuple[object, ...]]

YARDSTICK = (
    "The spread is the yardstick: random draws of one size differ this much by chance, so a smaller difference between "
    "arms says nothing about a method."
)
NO_YARDSTICK = (
    "The spread of random draws is unknown, so differences between arms have no yardstick. Add random to "
    "evaluation.baselines, and use at least two seeds."
)
WITHIN = "within the spread of random draws"


def spread_of(results: Results) -> tuple[list[str], Rows]:
    """Return headers and rows of `post_training_spread`."""
    headers = ["model", "arm", "benchmark", "draws", "mean", "standard deviation", "range (max - min)"]
    rows: Rows = []
    for row in results.spread.iter_rows(named=True):
        numbers = (_number(row[name], row["metric"]) for name in ("mean", "deviation", "range"))
        rows.append((row["model"], row["arm"], _title(row["benchmark"], row["metric"]), row["draws"], *numbers))
    return headers, rows


def yardstick(results: Results) -> str:
    """Return what the spread of random draws means, or why it is unknown."""
    return YARDSTICK if results.spread["range"].count() else NO_YARDSTICK


def differences_of(results: Results) -> tuple[list[str], Rows]:
    """Return headers and rows of `post_training_differences`."""
    headers = ["model", "arm", "against", "benchmark", "difference", "95 % interval", "remark"]
    rows: Rows = []
    for row in results.differences.iter_rows(named=True):
        low, high, metric = row["low"], row["high"], row["metric"]
        between = None if low is None else f"{_number(low, metric, '+')} to {_number(high, metric, '+')}"
        names = (row["model"], row["arm"], row["against"], _title(row["benchmark"], metric))
        remark = WITHIN if row["within_spread"] else None
        rows.append((*names, _number(row["difference"], metric, "+"), between, remark))
    return headers, rows


def _title(benchmark: str, metric: str) -> str:
    """Return a benchmark and metric with its unit."""
    if metric == RELATIVE_AVERAGE:
        return "relative average"
    return f"{benchmark}, %" if metric == "exact_match" else f"{benchmark}: loss, nats (lower is better)"


def _number(value: float | None, metric: str, sign: str = "") -> str | None:
    digits = 3 if metric == "loss" else 1
    return None if value is None else f"{value:{sign}.{digits}f}"


def arms_of(frame: pl.DataFrame) -> tuple[list[str], Rows]:
    """Return headers and rows of `post_training_eval`: one row per arm, one column per benchmark and metric, relative
    average last."""
    measured = frame.select("benchmark", "metric").unique(maintain_order=True).rows()
    headers = ["model", "arm", "selected by", "samples", "tokens trained", "seeds"]
    headers += [_title(name, metric) for name, metric in measured]
    rows: Rows = []
    for (model, arm), mine in frame.group_by(["model", "arm"], maintain_order=True):
        first = mine.row(0, named=True)
        cells = {(row["benchmark"], row["metric"]): with_interval(row) for row in mine.iter_rows(named=True)}
        facts = (model, arm, first["selected_by"], f"{first['samples']:,}", f"{first['tokens']:,}", first["seeds"])
        rows.append((*facts, *(cells.get(one) for one in measured)))
    return headers, rows


def with_interval(row: dict[str, Any]) -> str | None:
    """Return a mean with half of its interval, such as 41.2 ± 3.0; None without a mean."""
    if row["mean"] is None:
        return None
    half = "" if row["high"] is None else f" ± {_number(row['high'] - row['mean'], row['metric'])}"
    return f"{_number(row['mean'], row['metric'])}{half}"


def reasons_of(frame: pl.DataFrame) -> list[str]:
    """Return why values or intervals are missing, each reason with its arms."""
    lacking = frame.filter(pl.col("reason").is_not_null())
    by_reason = lacking.group_by("reason", maintain_order=True).agg(pl.col("arm").unique(maintain_order=True))
    return [f"{', '.join(arms)}: {reason}" for reason, arms in by_reason.iter_rows()]


def show_overlap(found: dict[str, int], console: Console) -> None:
    """Warn of benchmarks whose prompts are in the corpus."""
    for name, count in found.items():
        if count:
            line = f"{name}: {count} of its prompts are in the corpus, so trained models may know their answers"
            console.print(f"{line} (docs/evaluation.md)", style="yellow", highlight=False, soft_wrap=True)


def show_left_out(benchmarks: Sequence[Problems], console: Console) -> None:
    """Print the benchmarks with problems that have no right response."""
    for problems in benchmarks:
        if problems.left_out:
            count = problems.left_out + len(problems.items)
            line = f"{problems.name}: {problems.left_out} of {count} problems have no right response and no loss"
            console.print(line, style="yellow", highlight=False, soft_wrap=True)


def show_evaluation(results: Results, console: Console) -> None:
    """Print the results of an evaluation, the spread of random draws first."""
    if len(results.spread):
        console.print(simple_table("spread of random draws, over seeds", *spread_of(results)))
    console.print(yardstick(results), style="bold", highlight=False, soft_wrap=True)
    headers, rows = arms_of(results.arms)
    console.print(simple_table("after fine-tuning: mean ± 95 % (Student's t over seeds)", headers, rows))
    for reason in reasons_of(results.arms):
        console.print(reason, style="dim", highlight=False, soft_wrap=True)
    if len(results.differences):
        title = "differences between arms: 95 % of a paired bootstrap over problems"
        console.print(simple_table(title, *differences_of(results)))


def show_plan(plan: Plan, console: Console) -> None:
    """Print the runs and results of an evaluation, and which of them are stored."""
    metrics = dict.fromkeys(problems.metric for problems in plan.benchmarks)
    rows = []
    for run, key in plan.runs:
        lacking = plan.lacking.get(key, ())
        left = {metric: sum(len(one.items) for one in lacking if one.metric == metric) for metric in metrics}
        rows.append(
            (run.model, run.arm, run.seed, len(run.sample_ids), *(count or "stored" for count in left.values()))
        )
    asked = {"exact_match": "problems to answer", "loss": "problems to measure"}
    headers = ("model", "arm", "seed", "samples", *(asked[metric] for metric in metrics))
    console.print(simple_table("runs", headers, rows))
    steps = dict.fromkeys((run.model, run.steps) for run, _ in plan.runs if run.steps is not None)
    for model, count in steps:
        console.print(f"{model}: every arm is trained for {count} optimizer steps", highlight=False)
    trained = sum(run.seed is not None for run, _ in plan.due())
    again = len(plan.runs) - len({key for _, key in plan.runs})
    same = f"; {again} have the same samples as another arm and are not trained again" if again else ""
    console.print(f"{trained} fine-tuning runs to do, of {len(plan.runs)} runs{same}", highlight=False)
