"""Short ways to write landing files and settings in tests of the corpus stage."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from curation_assets.config.corpus_settings import Columns, Corpus
from curation_assets.corpus.drafts import Draft, Refused
from curation_assets.corpus.formats import Parser
from curation_assets.corpus.reading import Account, ShardRows, account, read_shard

Json = dict[str, Any]


def corpus(**values: object) -> Corpus:
    return Corpus.model_validate({"landing": "landing"} | values)


def columns(**values: object) -> Columns:
    return Columns.model_validate(values)


def jsonl(*rows: object) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def gz(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def parquet(*rows: Json) -> bytes:
    stream = io.BytesIO()
    pl.DataFrame(list(rows)).write_parquet(stream)
    return stream.getvalue()


def read(
    data: bytes | Path,
    name: str = "a.jsonl",
    images_root: Path | None = None,
    kept: dict[str, bytes] | None = None,
    **settings: object,
) -> ShardRows:
    """Reads a file and holds the reader to its account; images inside rows go to `kept`."""
    keep = None if kept is None else kept.__setitem__
    rows = read_shard(data, "shard", name, corpus(**settings), images_root, keep)
    assert accounted(rows).balanced, accounted(rows)
    return rows


def accounted(rows: ShardRows) -> Account:
    return account(rows.accepted, rows.rejected, rows.rows_in, rows.candidates_in)


def reasons(rows: ShardRows) -> list[tuple[int, int, str]]:
    """(row, candidate, reason) of everything rejected."""
    return rows.rejected.select("row", "candidate", "reason").rows()


def parse(row: Json, name: str, mapped: Columns | None = None, **settings: object) -> list[Draft | Refused]:
    """Parses one row of a named format."""
    return Parser(name, corpus(format=name, columns=mapped or Columns(), **settings)).parse(row)


def drafts(row: Json, name: str, mapped: Columns | None = None) -> list[Draft]:
    """The drafts of a row, none of which may be refused."""
    found = parse(row, name, mapped)
    assert not [item for item in found if isinstance(item, Refused)], found
    return [item for item in found if isinstance(item, Draft)]


def draft(row: Json, name: str, mapped: Columns | None = None) -> Draft:
    (only,) = drafts(row, name, mapped)
    return only


def data_file(path: str) -> Path:
    """A file of the real data, or a skip that says how to have it."""
    root = Path(os.environ.get("CURATION_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
    if not (root / path).is_file():
        pytest.skip(f"{path} is not there: set CURATION_TEST_DATA to the folder of the real data")
    return root / path
