"""Tables of scores and subsets."""

from __future__ import annotations

import polars as pl

from curation_assets.tables.schema import PROMPT_ID, ROW, SAMPLE_ID, SHARD, Column, Table

STEP_SCORES = Table(
    "step_scores",
    "scores of individual steps: GRACE's (arXiv 2605.13130, Eq. 6-8, 12), rewards of a process reward model, or "
    "relative rises of the loss without retrieval heads",
    {
        "sample_id": SAMPLE_ID,
        "step_index": Column(pl.Int32, "1..K"),
        "tokens": Column(pl.Int32, "tokens of the step", "tokens"),
        "answer_alignment": Column(pl.Float64, "cosine with the answer's gradient; GRACE only", nullable=True),
        "trajectory_consistency": Column(
            pl.Float64, "cosine with the weighted history; null for the first step; GRACE only", nullable=True
        ),
        "step_score": Column(pl.Float64, "alpha-weighted sum of the two; the reward; or the rise", nullable=True),
    },
    sort=("sample_id", "step_index"),
)

SAMPLE_SCORES = Table(
    "sample_scores",
    "one row per sample and target: ids, lengths, flags and one column per named score",
    {
        "sample_id": SAMPLE_ID,
        "prompt_id": PROMPT_ID,
        "shard": SHARD,
        "row": ROW,
        "candidate": Column(pl.Int32, "index of the response within its row, from 0"),
        "source": Column(pl.String, "data set named by the row, else the shard"),
        "domain": Column(pl.String, "subject named by the row", nullable=True),
        "generator": Column(pl.String, "author of the response", nullable=True),
        "correct": Column(pl.Boolean, "whether the row marks the answer as correct", nullable=True),
        "verified": Column(
            pl.Boolean, "whether the response's own answer matches the row's; null if either is missing", nullable=True
        ),
        "reward": Column(pl.Float64, "reward given in the row", nullable=True),
        "n_steps": Column(pl.Int32, "steps found by segmentation", "steps"),
        "response_tokens": Column(pl.Int32, "tokens of the response", "tokens"),
        "answer_norm": Column(pl.Float32, "norm of the answer's proxy gradient", nullable=True),
        "flags": Column(pl.List(pl.String), "reasons and warnings, e.g. no_answer, few_steps, zero_norm"),
    },
    open_columns=pl.Float64,
    sort=("row", "candidate"),
)

SCORE_MANIFEST = Table(
    "score_manifest",
    "inputs of a target's scores, per shard: the lineage of every subset selected by them",
    {
        "shard": SHARD,
        "path": Column(pl.String, "file name in the landing area"),
        "content_digest": Column(pl.String, "hash of the file's bytes"),
        "present": Column(pl.Boolean, "whether the file is still in the landing area"),
        "signal_fingerprint": Column(pl.String, "fingerprint of the signals behind the scores"),
        "score_fingerprint": Column(pl.String, "fingerprint of the signals and the score parameters"),
        "rows": Column(pl.Int64, "samples in the shard"),
        "rejected": Column(pl.Int64, "rejected rows in the shard"),
        "tokens": Column(pl.Int64, "tokens used to measure the shard's samples", "tokens"),
    },
    sort=("shard",),
)

SUBSET = Table(
    "subset",
    "a selected subset of the pool",
    {
        "sample_id": SAMPLE_ID,
        "rank": Column(pl.Int64, "1 is best"),
        "score": Column(pl.Float64, "the score it was ranked by"),
        "weight": Column(pl.Float64, "training weight"),
        "reason": Column(pl.String, "why the sample was selected"),
    },
    sort=("rank",),
)
