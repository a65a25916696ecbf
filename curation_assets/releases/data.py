"""Rows and data files of a release; equal rows give equal bytes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from curation_assets import tables
from curation_assets.config.settings import Subset
from curation_assets.corpus.images import STORED
from curation_assets.corpus.ingest import corpus_rows
from curation_assets.releases.file_names import DATA_JSONL, DATA_PARQUET, IMAGES
from curation_assets.releases.step_columns import STEP_COLUMNS, step_columns
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from curation_resources.storage.digests import bytes_digest
from curation_resources.storage.landing import file_name, printable

_TURN = {"role": pl.String(), "content": pl.String()}
_CALL = pl.Struct(
    {"id": pl.String, "type": pl.String, "function": pl.Struct({"name": pl.String, "arguments": pl.String})}
)
MESSAGES_TYPE = pl.List(pl.Struct(_TURN))
MESSAGES_WITH_CALLS_TYPE = pl.List(
    pl.Struct({**_TURN, "name": pl.String(), "tool_call_id": pl.String(), "tool_calls": pl.List(_CALL)})
)
"""The type of a release in which some turn has tool calls or a name."""

RELEASE = tables.Table(
    "release",
    "the rows of a release: a subset with content and steps, best first",
    {
        **tables.SUBSET.columns,
        **{name: column for name, column in tables.RAW_CORPUS.columns.items() if name not in tables.SUBSET.columns},
        "messages": tables.Column(
            MESSAGES_TYPE, "the prompt's turns and the response, in the format that trainers read"
        ),
        "step_spans": tables.Column(
            STEP_COLUMNS["step_spans"], "steps in order, as characters [start, end)", "characters"
        ),
        "step_scores": tables.Column(
            STEP_COLUMNS["step_scores"], "score of each step, by the subset's own score", nullable=True
        ),
        "step_alignments": tables.Column(
            STEP_COLUMNS["step_alignments"], "answer alignment of each step", nullable=True
        ),
        "step_consistencies": tables.Column(
            STEP_COLUMNS["step_consistencies"], "trajectory consistency of each step; null for the first", nullable=True
        ),
        "answer_span": tables.Column(STEP_COLUMNS["answer_span"], "position of the answer, [start, end)", "characters"),
    },
    sort=("rank",),
)
"""Schema of the Parquet file, as shown in catalogs."""

CHUNKED = "use_content_defined_chunking"
"""Option of the writer, if available: page boundaries depend on content, so that consecutive releases share most of
their bytes in deduplicating stores."""


class ReleaseError(UserError):
    """A release cannot be made, or is damaged."""


def release_rows(workspace: Workspace, subset: Subset, chosen: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of a release: the subset with the samples' content and steps, best first.

    Args:
        workspace: the configuration.
        subset: the subset to release.
        chosen: table `subset`.

    Raises:
        ReleaseError: the subset is empty, or the corpus lacks some of its samples.
    """
    content = corpus_rows(workspace, chosen["sample_id"].to_list())
    rows = chosen.join(content, on="sample_id", how="left", maintain_order="left")
    if rows.is_empty():
        raise ReleaseError(
            f"subset {subset.name} has no samples, and an empty release cannot be made. Widen its "
            "filters or budget, and use `curate run`."
        )
    if rows["response"].null_count():
        raise ReleaseError(f"subset {subset.name} names samples that are missing from the corpus. Run `curate run`.")
    steps = step_columns(workspace, subset, rows["sample_id"])
    return rows.join(steps, on="sample_id", how="left", maintain_order="left")


def content_digest(rows: pl.DataFrame) -> str:
    """Return the digest of a release's rows; equal content makes no new release."""
    return bytes_digest(rows.write_ndjson().encode())


def write_data(workspace: Workspace, place: Path, rows: pl.DataFrame) -> pl.DataFrame:
    """Write a release's rows as Parquet and as JSON lines into a folder, with the images embedded in them.

    Returns the rows as the Parquet file holds them.

    Raises:
        ReleaseError: an image is missing from the warehouse.
    """
    rows = _with_images(workspace, place, rows)
    (place / "data").mkdir()
    records = [trainer_record(row) for row in rows.iter_rows(named=True)]
    turns = [record["messages"] for record in records]
    plain = all(turn.keys() == _TURN.keys() for each in turns for turn in each)
    messages = pl.Series("messages", turns, dtype=MESSAGES_TYPE if plain else MESSAGES_WITH_CALLS_TYPE)
    written = rows.with_columns(messages)
    write_parquet(written, place / DATA_PARQUET)
    with (place / DATA_JSONL).open("w", encoding="utf-8", newline="\n") as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")
    return written


def write_parquet(rows: pl.DataFrame, path: Path) -> None:
    """Write rows so that adding or removing rows leaves the bytes of the others mostly unchanged."""
    options = {CHUNKED: True} if CHUNKED in inspect.signature(pq.ParquetWriter.__init__).parameters else {}
    table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
    pq.write_table(table, path, compression="zstd", **options)


def trainer_record(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return one record of the messages export: prompt turns and response in the trainers' format, and the id."""
    turns = json.loads(row["messages"])
    record: dict[str, Any] = {"messages": [*turns, {"role": "assistant", "content": row["response"]}]}
    if row["images"]:
        record["images"] = list(row["images"])
    return record | {"sample_id": row["sample_id"]}


def _with_images(workspace: Workspace, place: Path, rows: pl.DataFrame) -> pl.DataFrame:
    """Copy images that were embedded in landing files' rows into the release, and return the rows with the new
    paths."""
    shown = rows.select("shard", "images").explode("images").filter(pl.col("images").str.starts_with(STORED))
    for shard, reference in shown.unique("images", keep="first", maintain_order=True).iter_rows():
        name = reference.removeprefix(STORED)
        (place / IMAGES).mkdir(exist_ok=True)
        (place / IMAGES / name).write_bytes(_kept_image(workspace, name, shard))
    named = pl.element().str.replace(f"^{STORED}", f"{IMAGES}/")
    return rows.with_columns(pl.col("images").list.eval(named))


def _kept_image(workspace: Workspace, name: str, shard: str) -> bytes:
    """Return the bytes of an image that was embedded in a row of the shard.

    Raises:
        ReleaseError: the image is missing from the warehouse, or its bytes do not match its name.
    """
    storage = workspace.warehouse.storage
    path = storage.shown(f"{tables.images_dir()}/{name}")
    table = storage.shown(f"{tables.raw_corpus_dir()}/{shard}.parquet")
    try:
        data = storage.read(f"{tables.images_dir()}/{name}")
    except OSError as error:
        raise ReleaseError(
            f"image {path} cannot be read ({type(error).__name__}). Restore it, or delete {table} and use `curate "
            f"run`, which reads {printable(file_name(shard))} again and restores its images."
        ) from error
    if bytes_digest(data) != name:
        raise ReleaseError(
            f"image {path} is damaged: its bytes do not match its name. Delete it and {table}, and use `curate run`, "
            f"which reads {printable(file_name(shard))} again and restores its images."
        )
    return data
