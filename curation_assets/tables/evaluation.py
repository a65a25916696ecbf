"""Tables of the evaluation: answers of fine-tuned models, results per arm, and their paths.

`curation_assets.tables` lists them with all other tables.
"""

from __future__ import annotations

import polars as pl

from curation_assets.tables.schema import Column, Table

RELATIVE_AVERAGE = "relative_average"
"""Stands for all benchmarks together in the column `benchmark`; it is refused as a benchmark's name."""

_MODEL = Column(pl.String, "the target whose model was trained, or evaluated without training")
_ARM = Column(pl.String, "training data of the arm: a subset, a baseline with its size, full pool; or untouched base")
_KIND = Column(pl.String, "subset, baseline, full or base")
_SELECTED_BY = Column(pl.String, "the target that selected the subset; null for other arms", nullable=True)
_RUN = Column(pl.String, "id of the run: hash of model, recipe with its seed, and training samples")

POST_TRAINING_RUNS = Table(
    "post_training_runs",
    "every fine-tuning run of the last evaluation, with its exact match on each benchmark",
    {
        "model": _MODEL,
        "arm": _ARM,
        "kind": _KIND,
        "selected_by": _SELECTED_BY,
        "seed": Column(
            pl.Int64, "seed of the run; null for the untouched base, which involves no random draw", nullable=True
        ),
        "benchmark": Column(pl.String, "name of the benchmark"),
        "items": Column(pl.Int64, "problems of the benchmark"),
        "right": Column(pl.Int64, "problems answered correctly"),
        "answered": Column(pl.Int64, "problems with an answer in the generated text"),
        "finished": Column(pl.Int64, "problems for which the model ended its text by itself"),
        "exact_match": Column(pl.Float64, "share of problems answered correctly"),
        "samples": Column(pl.Int64, "training samples"),
        "tokens": Column(pl.Int64, "tokens processed in training, including prompts and all epochs", "tokens"),
        "steps": Column(pl.Int64, "optimizer steps"),
        "loss": Column(pl.Float64, "training loss of the last step", "nats", nullable=True),
        "loss_variance": Column(
            pl.Float64,
            "variance of the training loss over steps; null for runs of earlier versions",
            "nats^2",
            nullable=True,
        ),
        "gradient_norm": Column(
            pl.Float64,
            "mean gradient norm over steps, before clipping; null for runs of earlier versions",
            nullable=True,
        ),
        "largest_gradient_norm": Column(
            pl.Float64, "largest gradient norm, before clipping; null for runs of earlier versions", nullable=True
        ),
        "run": _RUN,
    },
)

POST_TRAINING_EVAL = Table(
    "post_training_eval",
    "results per arm: mean over seeds with a 95 % interval (Student's t), per benchmark and over all of them",
    {
        "model": _MODEL,
        "arm": _ARM,
        "kind": _KIND,
        "selected_by": _SELECTED_BY,
        "benchmark": Column(
            pl.String,
            "name of the benchmark: exact match in percent; or relative_average: mean over benchmarks of 100 m / "
            "m_full (GRACE, arXiv 2605.13130, table 1)",
        ),
        "mean": Column(pl.Float64, "mean over seeds; null if undefined", "percent", nullable=True),
        "low": Column(pl.Float64, "lower end of the interval", "percent", nullable=True),
        "high": Column(pl.Float64, "upper end of the interval", "percent", nullable=True),
        "seeds": Column(pl.Int64, "number of runs"),
        "samples": Column(pl.Int64, "training samples"),
        "tokens": Column(pl.Int64, "tokens processed in training, over all seeds", "tokens"),
        "reason": Column(pl.String, "why the mean or the interval is null", nullable=True),
    },
)

POST_TRAINING_ANSWERS = Table(
    "post_training_answers",
    "every answer of every run, including those of earlier evaluations",
    {
        "run": _RUN,
        "benchmark": Column(pl.String, "name of the benchmark when it was answered"),
        "item": Column(pl.Int64, "row of the benchmark's file, from 0 (blank lines count)"),
        "text": Column(pl.String, "generated text"),
        "answer": Column(pl.String, "the answer extracted from the text; null if none was found", nullable=True),
        "reference": Column(pl.String, "the correct answer"),
        "right": Column(pl.Boolean, "whether the answer matches the reference"),
        "finished": Column(pl.Boolean, "whether the model ended its text by itself"),
        "flag": Column(pl.String, "why the problem was not answered", nullable=True),
    },
    sort=("item",),
)

EVALUATION_TABLES = {table.name: table for table in (POST_TRAINING_EVAL, POST_TRAINING_RUNS, POST_TRAINING_ANSWERS)}


def post_training_eval_path() -> str:
    """Return the path of `post_training_eval`, one Parquet file."""
    return "reports/post_training_eval.parquet"


def post_training_runs_path() -> str:
    """Return the path of `post_training_runs`, one Parquet file."""
    return "reports/post_training_runs.parquet"


def answers_dir() -> str:
    """Return the folder of `post_training_answers`, which holds one Parquet file per run and benchmark."""
    return "evaluation/answers"
