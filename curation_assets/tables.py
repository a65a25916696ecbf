"""Which tables exist: their columns, types, units and meaning, and where each lies in the warehouse.

Everything that writes a table conforms its frame to the definition here, and the documentation, the
Dagster column schemas and `curate table` are generated from it. Storage itself is `resources.warehouse`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl
from polars.datatypes import DataType, DataTypeClass

PolarsType = DataType | DataTypeClass


class TableError(ValueError):
    """A frame does not have the columns or types that its table defines."""


@dataclass(frozen=True)
class Column:
    """One column: `unit` is empty where the value has none."""

    dtype: PolarsType
    meaning: str
    unit: str = ""
    nullable: bool = False


@dataclass(frozen=True)
class Table:
    """A table's contract. `open_columns` is the type of further columns that the config names, if any."""

    name: str
    meaning: str
    columns: dict[str, Column]
    open_columns: PolarsType | None = None
    sort: tuple[str, ...] = field(default=())

    @property
    def schema(self) -> dict[str, PolarsType]:
        """Column names and Polars types, in order."""
        return {name: column.dtype for name, column in self.columns.items()}

    def empty(self) -> pl.DataFrame:
        """A frame of this table with no rows."""
        return pl.DataFrame(schema=self.schema)

    def conform(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame with this table's columns in order, cast and sorted.

        Raises:
            TableError: a column is missing, unknown, of another type, or null where it must not be.
        """
        missing = [name for name in self.columns if name not in frame.columns]
        unknown = [name for name in frame.columns if name not in self.columns]
        if missing or (unknown and self.open_columns is None):
            raise TableError(f"table {self.name}: missing columns {missing}, unknown columns {unknown}")
        types = self.schema | {name: self.open_columns for name in unknown if self.open_columns is not None}
        wrong = [
            f"{name} is {frame.schema[name]}" for name, dtype in types.items() if not _fits(frame.schema[name], dtype)
        ]
        if wrong:
            raise TableError(f"table {self.name}: columns of another type: {', '.join(wrong)}")
        try:
            frame = frame.select(pl.col(name).cast(dtype) for name, dtype in types.items())
        except pl.exceptions.PolarsError as error:
            raise TableError(f"table {self.name}: {error}") from error
        for name, column in self.columns.items():
            if not column.nullable and frame[name].null_count():
                raise TableError(f"table {self.name}: column {name} holds {frame[name].null_count()} nulls")
        return frame.sort(self.sort, maintain_order=True) if self.sort else frame


def _fits(given: PolarsType, wanted: PolarsType) -> bool:
    """Whether a cast between the types only changes width: text is not parsed, fractions are not cut off."""
    if given in (wanted, pl.Null):
        return True
    if isinstance(given, pl.List) and isinstance(wanted, pl.List):
        return _fits(given.inner, wanted.inner)
    if wanted.is_float():
        return given.is_numeric()
    return given.is_integer() and wanted.is_integer()


SAMPLE_ID = Column(pl.String, "hash of prompt, response, answer, explicit steps and image bytes (128 bits, hex)")
PROMPT_ID = Column(pl.String, "hash of the prompt turns and images: the prompt group (128 bits, hex)")
SHARD = Column(pl.String, "partition key of the landing file")
ROW = Column(pl.Int64, "row of the file that the sample came from, from 0 (blank lines count)")
RESPONSE_TOKENS = Column(pl.Int32, "tokens of the response after truncation, without EOS", "tokens")
RUN_TOKENS = Column(pl.Int32, "tokens run through the model: prompt, images, response and EOS", "tokens")
SIGNAL_FLAGS = Column(pl.List(pl.String), "why a sample was not measured, or what to know about it")


def _mean(meaning: str, unit: str = "") -> Column:
    return Column(pl.Float64, f"mean over tokens: {meaning}", unit, nullable=True)


RAW_CORPUS = Table(
    "raw_corpus",
    "every accepted sample as it arrived, exact duplicates included (flagged when the pool is made)",
    {
        "sample_id": SAMPLE_ID,
        "prompt_id": PROMPT_ID,
        "shard": SHARD,
        "row": ROW,
        "candidate": Column(pl.Int32, "which response of its row, from 0"),
        "source": Column(pl.String, "data set that the row names, else the shard"),
        "domain": Column(pl.String, "subject that the row names", nullable=True),
        "generator": Column(pl.String, "who wrote the response: a model's name", nullable=True),
        "messages": Column(pl.String, "JSON list of the prompt's turns: {role, content}; <image> where they show one"),
        "images": Column(
            pl.List(pl.String),
            "the prompt's images in order: a path relative to the file's folder, a URL, or, of an image whose bytes "
            "were in the row, warehouse://images/HASH",
        ),
        "image_digests": Column(
            pl.List(pl.String), "BLAKE2b-128 of each image's bytes when the row was read (hex); null of a URL"
        ),
        "response": Column(pl.String, "the response verbatim", "characters"),
        "answer": Column(pl.String, "explicit answer, if the row has one", nullable=True),
        "steps": Column(pl.List(pl.String), "explicit steps, if the row has them", nullable=True),
        "correct": Column(pl.Boolean, "whether the row says that the answer is right", nullable=True),
        "reward": Column(pl.Float64, "reward that the row carries", nullable=True),
        "extra": Column(pl.String, "JSON object of all other fields; never shown to a method"),
    },
    sort=("row", "candidate"),
)

REJECTED_ROWS = Table(
    "rejected_rows",
    "every row or candidate response that arrived and could not be used",
    {
        "shard": SHARD,
        "row": Column(pl.Int64, "row of the file, from 0; -1 for the file as a whole"),
        "candidate": Column(pl.Int32, "which response of its row, from 0; -1 for the whole row"),
        "reason": Column(pl.String, "short machine-readable reason, e.g. not_json"),
        "detail": Column(pl.String, "what is wrong and how to mend it"),
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
        "strategy": Column(pl.String, "which segmentation strategy or answer marker gave the span"),
        "merged": Column(pl.Boolean, "segments were merged to stay within max_steps"),
    },
    sort=("sample_id", "step_index"),
)

STEP_GRADIENTS = Table(
    "step_gradients",
    "GRACE's signal: Gram matrix of the segments' proxy gradients at a checkpoint (arXiv 2605.13130, Eq. 9 and 11)",
    {
        "sample_id": SAMPLE_ID,
        "n_steps": Column(pl.Int32, "steps K that have tokens"),
        "step_indices": Column(pl.List(pl.Int32), "step_index of each measured step, in order"),
        "gram": Column(
            pl.List(pl.Float32),
            "upper triangle by rows of M = G G^T over steps 1..K, then the answer; null if not measured",
            nullable=True,
        ),
        "norms": Column(pl.List(pl.Float32), "gradient norms of steps 1..K, then the answer", nullable=True),
        "segment_tokens": Column(pl.List(pl.Int32), "tokens of steps 1..K, then the answer", "tokens"),
        "response_tokens": RESPONSE_TOKENS,
        "tokens": RUN_TOKENS,
        "flags": Column(pl.List(pl.String), "why a sample has no matrix, or what to know about it"),
    },
    sort=("sample_id",),
)

LIKELIHOODS = Table(
    "likelihoods",
    "what the model thinks of each response; means over its tokens, null if not measured",
    {
        "sample_id": SAMPLE_ID,
        "tokens": RUN_TOKENS,
        "response_tokens": RESPONSE_TOKENS,
        "mean_nll": _mean("negative log-likelihood of the response", "nats"),
        "first_nll": Column(pl.Float64, "-log p of the response's first token alone", "nats", nullable=True),
        "first_100_nll": _mean("the same over the first 100 tokens or all if there are fewer, EOS included", "nats"),
        "first_1000_nll": _mean("the same over the first 1,000 tokens", "nats"),
        "mean_entropy": _mean("entropy of the predicted distribution", "nats"),
        "least_confidence": _mean("1 - the largest predicted probability"),
        "mean_margin": _mean("the largest minus the second largest predicted probability"),
        "flags": SIGNAL_FLAGS,
    },
    sort=("sample_id",),
)

SEGMENT_LIKELIHOODS = Table(
    "segment_likelihoods",
    "mean negative log-likelihood of each step, and of the answer",
    {
        "sample_id": SAMPLE_ID,
        "step_indices": Column(pl.List(pl.Int32), "step_index of each step that has tokens, in order"),
        "segment_tokens": Column(
            pl.List(pl.Int32), "tokens of these steps, then of the answer if it has any", "tokens"
        ),
        "segment_nll": Column(
            pl.List(pl.Float64),
            "mean -log p of these steps' tokens, then of the answer's if it has any; null if not measured",
            "nats",
            nullable=True,
        ),
        "response_tokens": RESPONSE_TOKENS,
        "tokens": RUN_TOKENS,
        "flags": SIGNAL_FLAGS,
    },
    sort=("sample_id",),
)


TOKEN_LIKELIHOODS = Table(
    "token_likelihoods",
    "log-likelihood of every token of the response, for weights by token",
    {
        "sample_id": SAMPLE_ID,
        "log_likelihoods": Column(
            pl.List(pl.Float16),
            "log p of the response's tokens in order, in half precision; null if not measured",
            "nats",
            nullable=True,
        ),
        "response_tokens": RESPONSE_TOKENS,
        "tokens": RUN_TOKENS,
        "flags": SIGNAL_FLAGS,
    },
    sort=("sample_id",),
)

UNCONDITIONAL_LIKELIHOODS = Table(
    "unconditional_likelihoods",
    "how likely the model finds each response without its prompt: IFD's second pass",
    {
        "sample_id": SAMPLE_ID,
        "unconditional_nll": Column(
            pl.Float64,
            "mean -log p of the response's second to last token, given only the response's own tokens",
            "nats",
            nullable=True,
        ),
        "response_tokens": RESPONSE_TOKENS,
        "tokens": Column(pl.Int32, "tokens run for it: the response", "tokens"),
        "flags": SIGNAL_FLAGS,
    },
    sort=("sample_id",),
)


def _embeddings(pooling: str, how: str) -> Table:
    return Table(
        f"embeddings_{pooling}",
        f"each sample as one vector: the last layer's hidden states, {how}",
        {
            "sample_id": SAMPLE_ID,
            "vector": Column(
                pl.List(pl.Float16),
                "the vector [d] in half precision; null if not measured, or if a component is beyond its range",
                nullable=True,
            ),
            "response_tokens": RESPONSE_TOKENS,
            "tokens": RUN_TOKENS,
            "flags": SIGNAL_FLAGS,
        },
        sort=("sample_id",),
    )


EMBEDDINGS_MEAN = _embeddings("mean", "averaged over tokens")
EMBEDDINGS_LAST = _embeddings("last", "of the last token")
EMBEDDINGS_POSITION_WEIGHTED = _embeddings("position_weighted", "averaged with weights that grow with the position")

STEP_SCORES = Table(
    "step_scores",
    "GRACE's scores of single steps (arXiv 2605.13130, Eq. 6-8, 12)",
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
        "candidate": Column(pl.Int32, "which response of its row, from 0"),
        "source": Column(pl.String, "data set that the row names, else the shard"),
        "domain": Column(pl.String, "subject that the row names", nullable=True),
        "generator": Column(pl.String, "who wrote the response", nullable=True),
        "correct": Column(pl.Boolean, "whether the row says that the answer is right", nullable=True),
        "verified": Column(
            pl.Boolean, "whether the response's own answer is the row's; null if either is missing", nullable=True
        ),
        "reward": Column(pl.Float64, "reward that the row carries", nullable=True),
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
    "what stands behind a target's scores, shard by shard: the lineage of every subset made from them",
    {
        "shard": SHARD,
        "path": Column(pl.String, "file name in the landing area"),
        "content_digest": Column(pl.String, "hash of the file's bytes"),
        "present": Column(pl.Boolean, "the file is still in the landing area"),
        "signal_fingerprint": Column(pl.String, "fingerprint of the signals that the scores rest on"),
        "score_fingerprint": Column(pl.String, "fingerprint of signals plus score parameters"),
        "rows": Column(pl.Int64, "samples of the shard"),
        "rejected": Column(pl.Int64, "rows of the shard that were rejected"),
        "tokens": Column(pl.Int64, "tokens that measuring the shard's samples took", "tokens"),
    },
    sort=("shard",),
)

SUBSET = Table(
    "subset",
    "a selected subset of the pool",
    {
        "sample_id": SAMPLE_ID,
        "rank": Column(pl.Int64, "1 is best"),
        "score": Column(pl.Float64, "the score that ranked it"),
        "weight": Column(pl.Float64, "weight in training"),
        "reason": Column(pl.String, "why it was chosen"),
    },
    sort=("rank",),
)

SUBSET_COMPARISON = Table(
    "subset_comparison",
    "how subsets and scores differ, as one long table",
    {
        "comparison": Column(
            pl.String,
            "overlap: Jaccard index of two subsets; baseline: of a subset and as many samples of Random or Longest; "
            "rank_correlation: Spearman's, of two scores or of a score and a length, over the pool; composition: "
            "share of a source in a subset, or in the pool",
        ),
        "left": Column(pl.String, "subset or score"),
        "right": Column(pl.String, "subset, baseline, score, length or source"),
        "value": Column(pl.Float64, "the index, correlation or share; null where it is not defined", nullable=True),
        "samples": Column(pl.Int64, "samples behind it: shared, compared, or of the source"),
    },
    sort=("comparison", "left", "right"),
)

SIGNAL_TABLES = {
    table.name: table
    for table in (
        STEP_GRADIENTS,
        LIKELIHOODS,
        SEGMENT_LIKELIHOODS,
        TOKEN_LIKELIHOODS,
        UNCONDITIONAL_LIKELIHOODS,
        EMBEDDINGS_MEAN,
        EMBEDDINGS_LAST,
        EMBEDDINGS_POSITION_WEIGHTED,
    )
}

ALL_TABLES = {
    table.name: table
    for table in (
        RAW_CORPUS,
        REJECTED_ROWS,
        SEGMENTED_STEPS,
        *SIGNAL_TABLES.values(),
        STEP_SCORES,
        SAMPLE_SCORES,
        SCORE_MANIFEST,
        SUBSET,
        SUBSET_COMPARISON,
    )
}


# Where tables lie, relative to the warehouse's root.


def raw_corpus_dir() -> str:
    """Folder of `raw_corpus`, one Parquet file a shard."""
    return "corpus/raw_corpus"


def rejected_rows_dir() -> str:
    """Folder of `rejected_rows`, one Parquet file a shard."""
    return "corpus/rejected_rows"


def images_dir() -> str:
    """Folder of the images whose bytes were inside rows, each under the hash of its bytes."""
    return "images"


def validation_path(name: str) -> str:
    """The rows of a validation set, one Parquet file with the columns of `raw_corpus`."""
    return f"validation/{name}.parquet"


def segmented_steps_dir() -> str:
    """Folder of `segmented_steps`, one Parquet file a shard."""
    return "steps/segmented_steps"


def signal_dir(target: str, role: str, signal: str, fingerprint: str) -> str:
    """Folder of the measurements of one signal at one checkpoint under one fingerprint."""
    return f"signals/{target}/{role}/{signal}/{fingerprint}"


def checkpoint_dir(target: str, role: str, key: str) -> str:
    """Folder of a checkpoint that we trained, by the key of its recipe and base."""
    return f"checkpoints/{target}/{role}/{key}"


def step_scores_dir(target: str, score: str) -> str:
    """Folder of one named score's `step_scores`, one Parquet file a shard."""
    return f"scores/{target}/step_scores/{score}"


def sample_scores_dir(target: str) -> str:
    """Folder of a target's `sample_scores`, one Parquet file a shard."""
    return f"scores/{target}/sample_scores"


def score_manifest_path(target: str) -> str:
    """A target's `score_manifest`, one Parquet file."""
    return f"scores/{target}/score_manifest.parquet"


def subset_path(subset: str) -> str:
    """A subset's current rows, one Parquet file."""
    return f"subsets/{subset}.parquet"


def subset_comparison_path() -> str:
    """`subset_comparison`, one Parquet file."""
    return "reports/subset_comparison.parquet"


def release_dir(subset: str) -> str:
    """Folder of a subset's releases: one folder a version, and LATEST."""
    return f"releases/{subset}"
