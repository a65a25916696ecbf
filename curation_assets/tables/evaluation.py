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
_METRIC = Column(pl.String, "exact_match or loss")
_RUN = Column(pl.String, "id of the run: hash of model, recipe with its seed, and training samples")

POST_TRAINING_RUNS = Table(
    "post_training_runs",
    "every fine-tuning run of the last evaluation, with its exact match and loss on each benchmark",
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
        "right": Column(pl.Int64, "problems answered correctly; null without metric exact_match", nullable=True),
        "answered": Column(
            pl.Int64, "problems with an answer in the generated text; null without metric exact_match", nullable=True
        ),
        "finished": Column(
            pl.Int64,
            "problems for which the model ended its text by itself; null without metric exact_match",
            nullable=True,
        ),
        "exact_match": Column(
            pl.Float64, "share of problems answered correctly; null without metric exact_match", nullable=True
        ),
        "measured": Column(pl.Int64, "problems with a measured loss; null without metric loss", nullable=True),
        "held_out_loss": Column(
            pl.Float64,
            "mean over problems of the mean NLL of their right responses; lower is better; null without metric loss, "
            "or if a loss is not finite",
            "nats",
            nullable=True,
        ),
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
            "name of the benchmark; or relative_average: mean over benchmarks of 100 m / m_full (GRACE, arXiv "
            "2605.13130, table 1)",
        ),
        "metric": Column(
            pl.String,
            "exact_match, in percent; loss, in nats per token of right responses, lower is better; or "
            "relative_average, in percent",
        ),
        "mean": Column(pl.Float64, "mean over seeds; null if undefined", "percent or nats", nullable=True),
        "low": Column(pl.Float64, "lower end of the interval", "percent or nats", nullable=True),
        "high": Column(pl.Float64, "upper end of the interval", "percent or nats", nullable=True),
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

POST_TRAINING_LOSSES = Table(
    "post_training_losses",
    "loss of every run on every problem, including those of earlier evaluations",
    {
        "run": _RUN,
        "benchmark": Column(pl.String, "name of the benchmark when it was measured"),
        "item": Column(
            pl.Int64, "first row of the problem in the benchmark's file, from 0; rows with one prompt are one problem"
        ),
        "responses": Column(pl.Int64, "right responses of the problem that were measured"),
        "tokens": Column(pl.Int64, "tokens of these responses, without EOS", "tokens"),
        "loss": Column(
            pl.Float64,
            "mean over these responses of the mean NLL of a response's tokens, without EOS, as mean_nll of likelihoods",
            "nats",
            nullable=True,
        ),
        "flag": Column(pl.String, "why a response was not measured, or was truncated", nullable=True),
    },
    sort=("item",),
)

POST_TRAINING_SPREAD = Table(
    "post_training_spread",
    "how much random draws of the same size differ from one another: the yardstick for differences between arms",
    {
        "model": _MODEL,
        "arm": Column(pl.String, "the random baseline with its size"),
        "benchmark": Column(pl.String, "name of the benchmark"),
        "metric": _METRIC,
        "draws": Column(pl.Int64, "random draws, one per seed"),
        "mean": Column(pl.Float64, "mean over draws", "percent or nats"),
        "deviation": Column(
            pl.Float64, "standard deviation over draws, with n - 1", "percentage points or nats", nullable=True
        ),
        "range": Column(
            pl.Float64, "largest minus smallest; null for a single draw", "percentage points or nats", nullable=True
        ),
    },
)

POST_TRAINING_DIFFERENCES = Table(
    "post_training_differences",
    "each arm minus the random baseline of its size, and minus the full pool, with 95 % intervals from a paired "
    "bootstrap over problems",
    {
        "model": _MODEL,
        "arm": _ARM,
        "kind": _KIND,
        "against": Column(pl.String, "the arm that is subtracted"),
        "benchmark": Column(pl.String, "name of the benchmark"),
        "metric": _METRIC,
        "difference": Column(
            pl.Float64,
            "mean over problems of the arm's value minus the other's, each averaged over seeds; for loss, below 0 is "
            "better; null if a loss of one of them is not finite",
            "percentage points or nats",
            nullable=True,
        ),
        "low": Column(
            pl.Float64,
            "lower end of the interval; null for a single problem",
            "percentage points or nats",
            nullable=True,
        ),
        "high": Column(
            pl.Float64,
            "upper end of the interval; null for a single problem",
            "percentage points or nats",
            nullable=True,
        ),
        "problems": Column(pl.Int64, "problems with a value in both arms"),
        "spread": Column(
            pl.Float64,
            "range of the random draws of the arm's size; null if there are fewer than two",
            "percentage points or nats",
            nullable=True,
        ),
        "within_spread": Column(
            pl.Boolean, "whether the difference is at most this spread; null if it is unknown", nullable=True
        ),
    },
)

EVALUATION_TABLES = {
    table.name: table
    for table in (
        POST_TRAINING_EVAL,
        POST_TRAINING_SPREAD,
        POST_TRAINING_DIFFERENCES,
        POST_TRAINING_RUNS,
        POST_TRAINING_ANSWERS,
        POST_TRAINING_LOSSES,
    )
}


def post_training_eval_path() -> str:
    """Return the path of `post_training_eval`, one Parquet file."""
    return "reports/post_training_eval.parquet"


def post_training_runs_path() -> str:
    """Return the path of `post_training_runs`, one Parquet file."""
    return "reports/post_training_runs.parquet"


def post_training_spread_path() -> str:
    """Return the path of `post_training_spread`, one Parquet file."""
    return "reports/post_training_spread.parquet"


def post_training_differences_path() -> str:
    """Return the path of `post_training_differences`, one Parquet file."""
    return "reports/post_training_differences.parquet"


def losses_dir() -> str:
    """Return the folder of `post_training_losses`, which holds one Parquet file per run and benchmark."""
    return "evaluation/losses"


def answers_dir() -> str:
    """Return the folder of `post_training_answers`, which holds one Parquet file per run and benchmark."""
    return "evaluation/answers"
