"""The rows of a release and the files that they are written to: the same rows give the same bytes."""

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

MESSAGES_TYPE = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))

RELEASE = tables.Table(
    "release",
    "the rows of a release: a subset with content and steps, best first",
    {
        **tables.SUBSET.columns,
        **{name: column for name, column in tables.RAW_CORPUS.columns.items() if name not in tables.SUBSET.columns},
        "messages": tables.Column(MESSAGES_TYPE, "the prompt's turns and the response, as trainers read them"),
        "step_spans": tables.Column(STEP_COLUMNS["step_spans"], "the steps in order, [start, end)", "characters"),
        "step_scores": tables.Column(
            STEP_COLUMNS["step_scores"], "of each step, by the subset's own score", nullable=True
        ),
        "step_alignments": tables.Column(
            STEP_COLUMNS["step_alignments"], "answer alignment of each step", nullable=True
        ),
        "step_consistencies": tables.Column(
            STEP_COLUMNS["step_consistencies"], "trajectory consistency of each step; null for the first", nullable=True
        ),
        "answer_span": tables.Column(
            STEP_COLUMNS["answer_span"], "where the answer stands, [start, end)", "characters"
        ),
    },
    sort=("rank",),
)
"""The Parquet file, as catalogs show it."""

CHUNKED = "use_content_defined_chunking"
"""Where the writer has it: pages end where content says so, so that the next release shares most of its bytes with this
one in stores that keep equal chunks once."""


class ReleaseError(UserError):
    """A release cannot be made, or is damaged."""


def release_rows(workspace: Workspace, subset: Subset, chosen: pl.DataFrame) -> pl.DataFrame:
    """The rows of a release: the subset with the samples' content and steps, best first.

    Args:
        workspace: the configuration.
        subset: whose release.
        chosen: table `subset`.

    Raises:
        ReleaseError: there are none, or the corpus does not hold some of them.
    """
    content = corpus_rows(workspace, chosen["sample_id"].to_list())
    rows = chosen.join(content, on="sample_id", how="left", maintain_order="left")
    if rows.is_empty():
        raise ReleaseError(f"subset {subset.name} holds no sample: an empty release is never made")
    if rows["response"].null_count():
        raise ReleaseError(f"subset {subset.name} names samples that the corpus does not hold: run `curate run`")
    steps = step_columns(workspace, subset, rows["sample_id"])
    return rows.join(steps, on="sample_id", how="left", maintain_order="left")


def content_digest(rows: pl.DataFrame) -> str:
    """Of a release's rows: equal content makes no new release."""
    return bytes_digest(rows.write_ndjson().encode())


def write_data(workspace: Workspace, place: Path, rows: pl.DataFrame) -> None:
    """Write a release's rows as Parquet and as JSON lines into a folder, and the images that they brought.

    Raises:
        ReleaseError: the warehouse has lost an image.
    """
    rows = _with_images(workspace, place, rows)
    (place / "data").mkdir()
    records = [trainer_record(row) for row in rows.iter_rows(named=True)]
    messages = pl.Series("messages", [record["messages"] for record in records], dtype=MESSAGES_TYPE)
    write_parquet(rows.with_columns(messages), place / DATA_PARQUET)
    with (place / DATA_JSONL).open("w", encoding="utf-8", newline="\n") as stream:
        for record in records:
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_parquet(rows: pl.DataFrame, path: Path) -> None:
    """Write rows so that rows that come or go leave the bytes of the others mostly as they were."""
    options = {CHUNKED: True} if CHUNKED in inspect.signature(pq.ParquetWriter.__init__).parameters else {}
    table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
    pq.write_table(table, path, compression="zstd", **options)


def trainer_record(row: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the messages export: prompt turns and the response as trainers read them, and the id."""
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in json.loads(row["messages"])]
    record: dict[str, Any] = {"messages": [*turns, {"role": "assistant", "content": row["response"]}]}
    if row["images"]:
        record["images"] = list(row["images"])
    return record | {"sample_id": row["sample_id"]}


def _with_images(workspace: Workspace, place: Path, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows, naming copies in the release of the images whose bytes were inside landing files' rows."""
    shown = rows.select("shard", "images").explode("images").filter(pl.col("images").str.starts_with(STORED))
    for shard, reference in shown.unique("images", keep="first", maintain_order=True).iter_rows():
        name = reference.removeprefix(STORED)
        (place / IMAGES).mkdir(exist_ok=True)
        (place / IMAGES / name).write_bytes(_kept_image(workspace, name, shard))
    named = pl.element().str.replace(f"^{STORED}", f"{IMAGES}/")
    return rows.with_columns(pl.col("images").list.eval(named))


def _kept_image(workspace: Workspace, name: str, shard: str) -> bytes:
    """The bytes of an image that was inside a row of the shard.

    Raises:
        ReleaseError: the warehouse has lost the image, or has other bytes under its name.
    """
    storage = workspace.warehouse.storage
    path = storage.shown(f"{tables.images_dir()}/{name}")
    table = storage.shown(f"{tables.raw_corpus_dir()}/{shard}.parquet")
    try:
        data = storage.read(f"{tables.images_dir()}/{name}")
    except OSError as error:
        raise ReleaseError(
            f"image {path} cannot be read ({type(error).__name__}): put it back, or delete {table} and use "
            f"`curate run`, which reads {printable(file_name(shard))} again and keeps its images anew"
        ) from error
    if bytes_digest(data) != name:
        raise ReleaseError(
            f"image {path} is damaged, its bytes do not match its name: delete it and {table}, and use `curate run`, "
            f"which reads {printable(file_name(shard))} again and keeps its images anew"
        )
    return data
