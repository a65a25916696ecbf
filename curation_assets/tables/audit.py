"""Tables of `curate audit`: its samples with their flawed twins, and what it found; and their paths."""

from __future__ import annotations

import polars as pl

from curation_assets.tables.corpus import RAW_CORPUS
from curation_assets.tables.schema import Column, Table

AUDIT = "audit/"
"""Folder of what an audit measures: its samples, and their signals in folders that are named as the pool's."""

AUDIT_SAMPLES = Table(
    "audit_samples",
    "the samples of `curate audit`: those drawn from the pool, and their flawed twins; columns of `raw_corpus` beside",
    {
        "original": Column(pl.String, "sample_id of the sample that was drawn"),
        "kind": Column(pl.String, "original, or the corruption that made the twin"),
        "changed_steps": Column(pl.List(pl.Int32), "step_index of the steps that the corruption changed"),
        "donor": Column(pl.String, "sample_id of the other trace that the corruption was given", nullable=True),
        **RAW_CORPUS.columns,
    },
    sort=("original", "kind"),
)

METHOD_AUDIT = Table(
    "method_audit",
    "what `curate audit` found: how well each score tells samples from their flawed twins and follows labels, and what "
    "else explains it",
    {
        "target": Column(pl.String, "the target that measured the samples"),
        "score": Column(pl.String, "name of the score; of a method that is not configured, the method's"),
        "method": Column(pl.String, "its method"),
        "configured": Column(pl.Boolean, "false: computed with defaults, because the target measures what it reads"),
        "kind": Column(pl.String, "the corruption; or correct, verified, reward, steps (labels); or empty"),
        "measure": Column(
            pl.String,
            "auroc: probability that a sample scores above a flawed twin, or a labelled one above a worse one; "
            "win_rate: share of the samples that score above their own twin; step_auroc: as auroc, for steps against "
            "changed or wrongly labelled steps; step_rank: share of its trace's other steps that score above the "
            "changed step; flawed_share: share of twins among what a selector that compares samples takes, if it takes "
            "half; source_share: share of the score's variance that the source explains; tokens, steps: Spearman's "
            "correlation with length and number of steps; agreement: Spearman's with another score",
        ),
        "within": Column(
            pl.String, "all; or what is compared: source, prompt, position (step_index); selector; or the other score"
        ),
        "value": Column(pl.Float64, "the measure; null if undefined", nullable=True),
        "low": Column(pl.Float64, "lower end of the 95 % interval", nullable=True),
        "high": Column(pl.Float64, "upper end of the 95 % interval", nullable=True),
        "detectable": Column(
            pl.Float64, "distance from chance that would have been shown with probability .8", nullable=True
        ),
        "verdict": Column(
            pl.String,
            "by the interval, corrected for the number of cells: separates, at_chance, inverted; excluded: flawed "
            "twins get no score, so that they are never selected; too_few: fewer than 8 prompts on one of both sides; "
            "null for what has no chance level",
            nullable=True,
        ),
        "samples": Column(pl.Int64, "pairs, or samples, behind the value"),
        "without_score": Column(pl.Int64, "twins without a score whose original has one"),
    },
)


def method_audit_path() -> str:
    """Return the path of `method_audit`, one Parquet file."""
    return "reports/method_audit.parquet"


def audit_samples_path() -> str:
    """Return the path of `audit_samples`, one Parquet file."""
    return f"{AUDIT}samples.parquet"


def post_training_eval_path() -> str:
    """Return the path of `post_training_eval`, one Parquet file."""
    return "reports/post_training_eval.parquet"


def post_training_runs_path() -> str:
    """Return the path of `post_training_runs`, one Parquet file."""
    return "reports/post_training_runs.parquet"


def answers_dir() -> str:
    """Return the folder of `post_training_answers`, which holds one Parquet file per run and benchmark."""
    return "evaluation/answers"
