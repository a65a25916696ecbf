"""Paths of tables, relative to the warehouse's root."""

from __future__ import annotations


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


def earlier_steps_dir() -> str:
    """Return the folder of what `segmented_steps` held before the version of segmentation was raised.

    Samples whose steps are the same in both keep their measurements (`signals.carrying`).
    """
    return "steps/earlier_segmented_steps"


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
