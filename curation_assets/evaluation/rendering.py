"""Render an evaluation in the terminal and in Markdown: one row per arm, means with their intervals."""

from __future__ import annotations

from typing import Any

import polars as pl
from rich.console import Console

from curation_assets.evaluation.runs import Plan
from curation_assets.tables.evaluation import RELATIVE_AVERAGE
from curation_resources.terminal import simple_table

Rows = list[tuple[object, ...]]


def arms_of(frame: pl.DataFrame) -> tuple[list[str], Rows]:
    """Return headers and rows of `post_training_eval`: one row per arm, one column per benchmark, relative average
    last."""
    benchmarks = frame["benchmark"].unique(maintain_order=True).to_list()
    headers = ["model", "arm", "selected by", "samples", "tokens trained", "seeds"]
    headers += [f"{name}, %" if name != RELATIVE_AVERAGE else "relative average" for name in benchmarks]
    rows: Rows = []
    for (model, arm), mine in frame.group_by(["model", "arm"], maintain_order=True):
        first = mine.row(0, named=True)
        cells = {row["benchmark"]: with_interval(row) for row in mine.iter_rows(named=True)}
        facts = (model, arm, first["selected_by"], f"{first['samples']:,}", f"{first['tokens']:,}", first["seeds"])
        rows.append((*facts, *(cells.get(name) for name in benchmarks)))
    return headers, rows


def with_interval(row: dict[str, Any]) -> str | None:
    """Return a mean with half of its interval, such as 41.2 ± 3.0; None without a mean."""
    if row["mean"] is None:
        return None
    half = "" if row["high"] is None else f" ± {row['high'] - row['mean']:.1f}"
    return f"{row['mean']:.1f}{half}"


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


def show_evaluation(frame: pl.DataFrame, console: Console) -> None:
    """Print the results of an evaluation."""
    headers, rows = arms_of(frame)
    console.print(simple_table("after fine-tuning: exact match, mean ± 95 % (Student's t over seeds)", headers, rows))
    for reason in reasons_of(frame):
        console.print(reason, style="dim", highlight=False, soft_wrap=True)


def show_plan(plan: Plan, console: Console) -> None:
    """Print the runs and answers of an evaluation, and which of them are stored."""
    rows = []
    for run, key in plan.runs:
        asked = sum(len(problems.items) for problems in plan.lacking.get(key, ()))
        rows.append((run.model, run.arm, run.seed, len(run.sample_ids), asked or "stored"))
    console.print(simple_table("runs", ("model", "arm", "seed", "samples", "problems to answer"), rows))
    trained = sum(run.seed is not None for run, _ in plan.due())
    again = len(plan.runs) - len({key for _, key in plan.runs})
    same = f"; {again} have the same samples as another arm and are not trained again" if again else ""
    console.print(f"{trained} fine-tuning runs to do, of {len(plan.runs)} runs{same}", highlight=False)
