"""Check the structure of a release's manifest and rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl
from pydantic import ValidationError

from curation_assets import tables
from curation_assets.releases.data import MESSAGES_TYPE, MESSAGES_WITH_CALLS_TYPE, RELEASE
from curation_assets.releases.manifest import SCHEMA_VERSION
from curation_assets.releases.manifest_schema import Manifest
from curation_assets.releases.step_columns import STEP_COLUMNS, VALUES

MOST_WRONG = 5
"""Maximum number of manifest keys to report."""

NEVER_NULL = ("sample_id", "rank", "prompt_id", "source", "messages", "response", "reason")
NEEDED = (*tables.SUBSET.columns, "prompt_id", "source", "response", "messages", "images", "answer", "domain")


def wrong_with_manifest(manifest: object) -> Iterator[str]:
    """Yield the problems that prevent reading a manifest; nothing if it conforms to its schema."""
    if not isinstance(manifest, Mapping):
        yield "is not a JSON object"
        return
    version = manifest.get("schema_version")
    if version != SCHEMA_VERSION:
        yield f"has schema version {version!r}; this version of curation-assets reads {SCHEMA_VERSION}"
        return
    try:
        Manifest.model_validate(manifest, strict=True)
    except ValidationError as error:
        for wrong in error.errors()[:MOST_WRONG]:
            yield f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"


def wrong_with_rows(frame: pl.DataFrame) -> Iterator[str]:
    """Yield the problems with the column types and the structure of a release's rows.

    Step columns may be missing, because early releases do not have them.
    """
    types: dict[str, Any] = {name: RELEASE.columns[name].dtype for name in NEEDED} | {"messages": MESSAGES_TYPE}
    if frame.schema.get("messages") == MESSAGES_WITH_CALLS_TYPE:
        types["messages"] = MESSAGES_WITH_CALLS_TYPE
    missing = [name for name in NEEDED if name not in frame.columns]
    if missing:
        yield f"has no column {', '.join(missing)}"
        return
    types |= {name: dtype for name, dtype in STEP_COLUMNS.items() if name in frame.columns}
    odd = [f"{name} ({frame.schema[name]})" for name, dtype in types.items() if frame.schema[name] != dtype]
    if odd:
        yield f"has columns of unexpected types: {', '.join(odd)}"
        return
    for name in NEVER_NULL:
        if frame[name].null_count():
            yield f"has rows without {name}"
    turns = frame["messages"].list.len()
    if frame["messages"].null_count() or (turns < 2).any():
        yield "has rows without a prompt and a response in messages"
    elif frame["response"].to_list() != [found[-1]["content"] for found in frame["messages"].to_list()]:
        yield "has responses that differ from the last turn of messages"
    if "step_spans" in frame.columns:
        yield from _wrong_with_steps(frame)


def _wrong_with_steps(frame: pl.DataFrame) -> Iterator[str]:
    counts = pl.col("step_spans").list.len()
    for name in VALUES:
        if name in frame.columns and frame.filter(pl.col(name).list.len() != counts).height:
            yield f"has rows with different numbers of {name} and step_spans"
    spans = frame.select("response", "step_spans").explode("step_spans").drop_nulls("step_spans").unnest("step_spans")
    outside = (
        (pl.col("start") < 0) | (pl.col("end") < pl.col("start")) | (pl.col("end") > pl.col("response").str.len_chars())
    )
    if spans.filter(outside | pl.col("start").is_null() | pl.col("end").is_null()).height:
        yield "has steps outside their responses"
