"""All tables: their columns, types, units and meaning, and their paths in the warehouse.

Every writer conforms its frame to the definition here, and the documentation, the Dagster column schemas and `curate
table` are generated from it. Storage itself is `storage.warehouse`.
"""

from __future__ import annotations

import polars as pl

from curation_assets.tables.evaluation import EVALUATION_TABLES
from curation_assets.tables.reports import (
    PREFERENCE,
    SPECTRA_BY_LAYER,
    SPECTRA_CORRELATIONS,
    SUBSET_COMPARISON,
    preference_path,
    spectra_by_layer_path,
    spectra_correlations_path,
    subset_comparison_path,
)
from curation_assets.tables.schema import PROMPT_ID, ROW, SAMPLE_ID, SHARD, Column, Table, TableError
from curation_assets.tables.signals import (
    ADAM_FEATURE_TRAJECTORIES,
    BASE_LIKELIHOODS,
    DIFFICULTY,
    EMBEDDINGS_LAST,
    EMBEDDINGS_MEAN,
    EMBEDDINGS_POSITION_WEIGHTED,
    GRADIENT_FEATURE_TRAJECTORIES,
    GRADIENT_FEATURES,
    GRADIENT_NORMS,
    GRADIENT_SPECTRA,
    IN_RUN_INFLUENCE,
    INSTRUCTION_TAGS,
    LIKELIHOODS,
    LOSS_TRAJECTORIES,
    PERTURBED_LOSSES,
    REWARDS,
    SEGMENT_LIKELIHOODS,
    SEQUENCE_LIKELIHOODS,
    SIGNAL_TABLES,
    STEP_GRADIENT_TRAJECTORIES,
    STEP_GRADIENTS,
    TEXT_EMBEDDINGS,
    TOKEN_LIKELIHOODS,
    UNCONDITIONAL_LIKELIHOODS,
)

__all__ = [
    "ADAM_FEATURE_TRAJECTORIES",
    "BASE_LIKELIHOODS",
    "DIFFICULTY",
    "EMBEDDINGS_LAST",
    "EMBEDDINGS_MEAN",
    "EMBEDDINGS_POSITION_WEIGHTED",
    "GRADIENT_FEATURES",
    "GRADIENT_FEATURE_TRAJECTORIES",
    "GRADIENT_NORMS",
    "GRADIENT_SPECTRA",
    "INSTRUCTION_TAGS",
    "IN_RUN_INFLUENCE",
    "LIKELIHOODS",
    "LOSS_TRAJECTORIES",
    "PERTURBED_LOSSES",
    "PREFERENCE",
    "REWARDS",
    "SEGMENT_LIKELIHOODS",
    "SEQUENCE_LIKELIHOODS",
    "SIGNAL_TABLES",
    "SPECTRA_BY_LAYER",
    "SPECTRA_CORRELATIONS",
    "STEP_GRADIENTS",
    "STEP_GRADIENT_TRAJECTORIES",
    "SUBSET_COMPARISON",
    "TEXT_EMBEDDINGS",
    "TOKEN_LIKELIHOODS",
    "UNCONDITIONAL_LIKELIHOODS",
    "Column",
    "Table",
    "TableError",
    "preference_path",
    "spectra_by_layer_path",
    "spectra_correlations_path",
    "subset_comparison_path",
]

REPETITION_SHARES = (
    *(f"duplicate_{part}_{of}" for of in ("share", "characters") for part in ("line", "paragraph")),
    *(f"top_{n}_gram_characters" for n in (2, 3, 4)),
    *(f"duplicate_{n}_gram_characters" for n in range(5, 11)),
)
"""Shares of repeated text, defined in `curation_assets.quality.repetition`."""

RAW_CORPUS = Table(
    "raw_corpus",
    "every accepted sample as it arrived, including exact duplicates (flagged when the pool is built)",
    {
        "sample_id": SAMPLE_ID,
        "prompt_id": PROMPT_ID,
        "shard": SHARD,
        "row": ROW,
        "candidate": Column(pl.Int32, "index of the response within its row, from 0"),
        "source": Column(pl.String, "data set named by the row, else the shard"),
        "domain": Column(pl.String, "subject named by the row", nullable=True),
        "generator": Column(pl.String, "author of the response, usually a model's name", nullable=True),
        "messages": Column(
            pl.String, "JSON list of the prompt's turns: {role, content}; <image> marks the place of an image"
        ),
        "images": Column(
            pl.List(pl.String),
            "the prompt's images in order: a path relative to the file's folder, a URL, or warehouse://images/HASH "
            "for an image embedded in the row",
        ),
        "image_digests": Column(
            pl.List(pl.String), "BLAKE2b-128 of each image's bytes when the row was read (hex); null for a URL"
        ),
        "response": Column(pl.String, "the response verbatim", "characters"),
        "answer": Column(pl.String, "explicit answer, if the row has one", nullable=True),
        "steps": Column(pl.List(pl.String), "explicit steps, if the row has them", nullable=True),
        "correct": Column(pl.Boolean, "whether the row marks the answer as correct", nullable=True),
        "reward": Column(pl.Float64, "reward given in the row", nullable=True),
        "extra": Column(pl.String, "JSON object of all other fields; never passed to a method"),
    },
    sort=("row", "candidate"),
)

REJECTED_ROWS = Table(
    "rejected_rows",
    "every row or candidate response that was rejected",
    {
        "shard": SHARD,
        "row": Column(pl.Int64, "row of the file, from 0; -1 for the whole file"),
        "candidate": Column(pl.Int32, "index of the response within its row, from 0; -1 for the whole row"),
        "reason": Column(pl.String, "short machine-readable reason, e.g. not_json"),
        "detail": Column(pl.String, "description of the problem and its fix"),
        "excerpt": Column(pl.String, "the first 200 characters of the row"),
    },
    sort=("row", "candidate"),
)

SEGMENTED_STEPS = Table(
    "segmented_steps",
    "the spans of each response: its steps and its answer",
    {
        "sample_id": SAMPLE_ID,
        "step_index": Column(pl.Int32, "1..K for steps, 0 for the answer"),
        "kind": Column(pl.String, "step or answer"),
        "start": Column(pl.Int64, "first character of the span in the response", "characters"),
        "end": Column(pl.Int64, "one past the last character of the span", "characters"),
        "strategy": Column(pl.String, "segmentation strategy or answer marker that produced the span"),
        "merged": Column(pl.Boolean, "whether segments were merged to stay within max_steps"),
    },
    sort=("sample_id", "step_index"),
)

SAMPLE_QUALITY = Table(
    "sample_quality",
    "measurements of the text for the pool's filters; null if no filter needs them",
    {
        "sample_id": SAMPLE_ID,
        "language": Column(
            pl.String, "ISO 639-1 code of the response's language; null if the text is too short to tell", nullable=True
        ),
        "confidence": Column(pl.Float64, "confidence of the language detection", nullable=True),
        "repetition": Column(
            pl.Struct(dict.fromkeys(REPETITION_SHARES, pl.Float64)),
            "shares of the response that are repeated (arXiv 2112.11446, Table A1)",
            nullable=True,
        ),
        "benchmarks": Column(pl.List(pl.String), "benchmarks that the prompt and response overlap with", nullable=True),
        "benchmark_share": Column(
            pl.List(pl.Float64), "per overlapping benchmark, the largest share of one item's n-grams", nullable=True
        ),
        "signature": Column(pl.List(pl.UInt32), "MinHash signature of the prompt and response", nullable=True),
    },
    sort=("sample_id",),
)

POOL = Table(
    "pool",
    "every present sample, with the reason if it is excluded from the pool",
    {
        "sample_id": SAMPLE_ID,
        "reason": Column(
            pl.String,
            "contaminated, language, repetitive, near_duplicate; null if the sample is in the pool",
            nullable=True,
        ),
        "detail": Column(pl.String, "the benchmarks, language, limits or duplicated sample", nullable=True),
    },
    sort=("sample_id",),
)

STEP_SCORES = Table(
    "step_scores",
    "GRACE's scores of individual steps (arXiv 2605.13130, Eq. 6-8, 12)",
    {
        "sample_id": SAMPLE_ID,
        "step_index": Column(pl.Int32, "1..K"),
        "tokens": Column(pl.Int32, "tokens of the step", "tokens"),
        "answer_alignment": Column(pl.Float64, "cosine with the answer's gradient", nullable=True),
        "trajectory_consistency": Column(
            pl.Float64, "cosine with the weighted history; null for the first step", nullable=True
        ),
        "step_score": Column(pl.Float64, "alpha-weighted sum of the two", nullable=True),
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

ALL_TABLES = {
    table.name: table
    for table in (
        RAW_CORPUS,
        REJECTED_ROWS,
        SEGMENTED_STEPS,
        SAMPLE_QUALITY,
        POOL,
        *SIGNAL_TABLES.values(),
        STEP_SCORES,
        SAMPLE_SCORES,
        SCORE_MANIFEST,
        SUBSET,
        SUBSET_COMPARISON,
        PREFERENCE,
        SPECTRA_BY_LAYER,
        SPECTRA_CORRELATIONS,
        *EVALUATION_TABLES.values(),
    )
}


# Paths of tables, relative to the warehouse's root.


def traces_path(subset: str) -> str:
    """Return the path of a subset's trace page."""
    return f"reports/traces/{subset}.html"


def raw_corpus_dir() -> str:
    """Return the folder of `raw_corpus`, which holds one Parquet file per shard."""
    return "corpus/raw_corpus"


def rejected_rows_dir() -> str:
    """Return the folder of `rejected_rows`, which holds one Parquet file per shard."""
    return "corpus/rejected_rows"


def purged_path() -> str:
    """Return the path of the JSON document that lists purged samples."""
    return "corpus/purged.json"


def spent_path() -> str:
    """Return the path of the JSON document with today's consumption by launched runs, kept if `limits` are set."""
    return "limits/spent.json"


def images_dir() -> str:
    """Return the folder of images embedded in rows; each file is named by the hash of its bytes."""
    return "images"


def sample_quality_dir() -> str:
    """Return the folder of `sample_quality`, which holds one Parquet file per shard."""
    return "corpus/sample_quality"


def pool_path() -> str:
    """Return the path of `pool`, one Parquet file."""
    return "corpus/pool.parquet"


def validation_path(name: str) -> str:
    """Return the path of a validation set's rows, one Parquet file with the columns of `raw_corpus`."""
    return f"validation/{name}.parquet"


def segmented_steps_dir() -> str:
    """Return the folder of `segmented_steps`, which holds one Parquet file per shard."""
    return "steps/segmented_steps"


def signal_dir(target: str, role: str, signal: str, fingerprint: str) -> str:
    """Return the folder of one signal's measurements at one checkpoint, under one fingerprint."""
    return f"signals/{target}/{role}/{signal}/{fingerprint}"


def checkpoint_dir(target: str, role: str, key: str) -> str:
    """Return the folder of a trained checkpoint, by the key of its recipe and base model."""
    return f"checkpoints/{target}/{role}/{key}"


def step_scores_dir(target: str, score: str) -> str:
    """Return the folder of one score's `step_scores`, which holds one Parquet file per shard."""
    return f"scores/{target}/step_scores/{score}"


def sample_scores_dir(target: str) -> str:
    """Return the folder of a target's `sample_scores`, which holds one Parquet file per shard."""
    return f"scores/{target}/sample_scores"


def score_manifest_path(target: str) -> str:
    """Return the path of a target's `score_manifest`, one Parquet file."""
    return f"scores/{target}/score_manifest.parquet"


def subset_path(subset: str) -> str:
    """Return the path of a subset's current rows, one Parquet file."""
    return f"subsets/{subset}.parquet"


def selection_path(subset: str) -> str:
    """Return the path of the facts about a subset's selection."""
    return f"subsets/{subset}.json"


def release_dir(subset: str) -> str:
    """Return the folder of a subset's releases, which holds one folder per version, and LATEST."""
    return f"releases/{subset}"
