"""Tables of the corpus: its rows, their steps, what the filters read, and the pool that they leave."""

from __future__ import annotations

import polars as pl

from curation_assets.tables.schema import PROMPT_ID, ROW, SAMPLE_ID, SHARD, Column, Table

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
            pl.String,
            "JSON list of the prompt's turns: {role, content}, and where a turn has them tool_calls, tool_call_id and "
            "name; <image> marks the place of an image",
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
