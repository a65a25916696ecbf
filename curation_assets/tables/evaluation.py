"""Tables of the evaluation: what fine-tuned models answered, how each arm did, and where they lie.

`curation_assets.tables` lists them among all others.
"""

from __future__ import annotations

import polars as pl

from curation_assets.tables.schema import Column, Table

RELATIVE_AVERAGE = "relative_average"
"""What stands in place of a benchmark where all of them are summed up; no benchmark can have a name with a blank in it,
and this one is refused."""

_MODEL = Column(pl.String, "the target whose model was trained, or asked as it is")
_ARM = Column(pl.String, "what it was trained on: a subset, a baseline with its size, full pool; or untouched base")
_KIND = Column(pl.String, "subset, baseline, full or base")
_SELECTED_BY = Column(pl.String, "the target that chose the subset; null of other arms", nullable=True)
_RUN = Column(pl.String, "hash of model, recipe with its seed, and samples trained on: the run")

POST_TRAINING_RUNS = Table(
    "post_training_runs",
    "every fine-tuning run of the last evaluation, and its exact match on every benchmark",
    {
        "model": _MODEL,
        "arm": _ARM,
        "kind": _KIND,
        "selected_by": _SELECTED_BY,
        "seed": Column(pl.Int64, "of the run; null of the untouched base, in which nothing is drawn", nullable=True),
        "benchmark": Column(pl.String, "name of the benchmark"),
        "items": Column(pl.Int64, "problems of the benchmark"),
        "right": Column(pl.Int64, "of them, those whose answer is the right one"),
        "answered": Column(pl.Int64, "of them, those in whose text an answer was found"),
        "finished": Column(pl.Int64, "of them, those that the model ended by itself"),
        "exact_match": Column(pl.Float64, "share of the problems that are right"),
        "samples": Column(pl.Int64, "samples trained on"),
        "tokens": Column(pl.Int64, "tokens run in training, prompts and all epochs included", "tokens"),
        "steps": Column(pl.Int64, "optimizer steps"),
        "loss": Column(pl.Float64, "training loss of the last step", "nats", nullable=True),
        "loss_variance": Column(
            pl.Float64, "of the training loss over steps; null of runs of former versions", "nats^2", nullable=True
        ),
        "gradient_norm": Column(pl.Float64, "mean over steps, before it was scaled down; likewise", nullable=True),
        "largest_gradient_norm": Column(pl.Float64, "the largest of them; likewise", nullable=True),
        "run": _RUN,
    },
)

POST_TRAINING_EVAL = Table(
    "post_training_eval",
    "how each arm did: mean over seeds with its 95 % interval (Student's t), on every benchmark and summed up",
    {
        "model": _MODEL,
        "arm": _ARM,
        "kind": _KIND,
        "selected_by": _SELECTED_BY,
        "benchmark": Column(
            pl.String,
            "name of the benchmark: exact match in percent; or relative_average: mean over benchmarks of "
            "100 m / m_full (GRACE, arXiv 2605.13130, table 1)",
        ),
        "mean": Column(pl.Float64, "over seeds; null where it is not defined", "percent", nullable=True),
        "low": Column(pl.Float64, "lower end of the interval", "percent", nullable=True),
        "high": Column(pl.Float64, "upper end of the interval", "percent", nullable=True),
        "seeds": Column(pl.Int64, "runs behind it"),
        "samples": Column(pl.Int64, "samples trained on"),
        "tokens": Column(pl.Int64, "tokens run in training, all seeds together", "tokens"),
        "reason": Column(pl.String, "why a mean or an interval is null", nullable=True),
    },
)

POST_TRAINING_ANSWERS = Table(
    "post_training_answers",
    "what every run answered to every problem, former evaluations included",
    {
        "run": _RUN,
        "benchmark": Column(pl.String, "name that the benchmark had"),
        "item": Column(pl.Int64, "row of the benchmark's file, from 0 (blank lines count)"),
        "text": Column(pl.String, "what the model wrote"),
        "answer": Column(pl.String, "the answer that was found in it; null if none was", nullable=True),
        "reference": Column(pl.String, "the right answer"),
        "right": Column(pl.Boolean, "whether they say the same"),
        "finished": Column(pl.Boolean, "the model ended by itself"),
        "flag": Column(pl.String, "why the problem could not be asked", nullable=True),
    },
    sort=("item",),
)

EVALUATION_TABLES = {table.name: table for table in (POST_TRAINING_EVAL, POST_TRAINING_RUNS, POST_TRAINING_ANSWERS)}


def post_training_eval_path() -> str:
    """`post_training_eval`, one Parquet file."""
    return "reports/post_training_eval.parquet"


def post_training_runs_path() -> str:
    """`post_training_runs`, one Parquet file."""
    return "reports/post_training_runs.parquet"


def answers_dir() -> str:
    """Folder of `post_training_answers`, one Parquet file a run and benchmark."""
    return "evaluation/answers"
