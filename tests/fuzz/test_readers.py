"""Landing files whose bytes were changed: nothing is raised, every row is accounted for, and memory is bounded."""

from __future__ import annotations

import contextlib
import gzip
import io
import resource
import time
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curation_assets.corpus.drafts import REASONS, Refused
from curation_assets.corpus.images import image_sources
from curation_assets.corpus.parquet_pages import plans
from curation_assets.corpus.reading import ShardRows
from tests.corpus.helpers import Json, gz, jsonl, read
from tests.fuzz.mutations import mutated

MIB = 2**20
LONGEST_SECONDS = 20.0
MOST_GROWTH = 1024
"""MiB that a file of some KiB may make the process grow by, at most."""

ROWS: list[Json] = [
    {"prompt": "2 + 2?", "response": "Step 1: 2 + 2 = 4\nAnswer: 4", "answer": "4", "source": "a"},
    {"prompt": "ß 題 👩", "response": "שלום\u2028\u202e", "correct": True, "reward": 0.5},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r" * 300}]},
    {"prompt": "q", "responses": ["a", "", "b"], "extra": {"deep": [[1, [2.5, None]], {"x": "y"}]}},
    {"prompt": "<image>", "response": "r", "image": "data:image/png;base64,iVBORw0KGgo="},
    {"prompt": "q", "chosen": "c", "rejected": "d", "n": 12345678901234567890},
]
LINES = jsonl(*ROWS * 4)


def arrow_file(**options: Any) -> bytes:
    """A Parquet file with columns of many kinds."""
    count = 300
    table = pa.table(
        {
            "prompt": [f"question {number % 7}" for number in range(count)],
            "response": [f"answer {number}\nso {number}" if number % 9 else None for number in range(count)],
            "steps": [[f"answer {number}", f"so {number}"] if number % 3 else None for number in range(count)],
            "messages": [[{"role": "user", "content": f"q{number}"}] * (number % 4) for number in range(count)],
            "score": [number / 3 for number in range(count)],
            "raw": [bytes([number % 256]) * (number % 20) for number in range(count)],
            "when": pa.array([1_700_000_000_000_000_000 + number for number in range(count)], pa.timestamp("ns")),
            "fixed": pa.array([bytes([number % 256] * 4) for number in range(count)], pa.binary(4)),
            "map": pa.array([[("k", number)] for number in range(count)], pa.map_(pa.string(), pa.int64())),
        }
    )
    stream = io.BytesIO()
    pq.write_table(table, stream, **({"row_group_size": 100} | options))
    return stream.getvalue()


def polars_file() -> bytes:
    stream = io.BytesIO()
    rows = {"prompt": ["q"] * 200, "response": [f"r{number}" for number in range(200)], "n": list(range(200))}
    pl.DataFrame(rows).write_parquet(stream, row_group_size=64)
    return stream.getvalue()


ENCODINGS = {"prompt": "DELTA_BYTE_ARRAY", "response": "DELTA_LENGTH_BYTE_ARRAY", "score": "BYTE_STREAM_SPLIT"}
FILES: dict[str, bytes] = {
    "lines.jsonl": LINES,
    "lines.jsonl.gz": gz(LINES),
    "members.jsonl.gz": gz(LINES[:500]) + gz(LINES[500:]),
    "snappy.parquet": arrow_file(compression="snappy"),
    "zstd.parquet": arrow_file(compression="zstd", data_page_version="2.0", data_page_size=512),
    "plain.parquet": arrow_file(compression="none", use_dictionary=False, write_page_checksum=True),
    "gzip.parquet": arrow_file(compression="gzip", column_encoding=None),
    "delta.parquet": arrow_file(use_dictionary=False, column_encoding=ENCODINGS),
    "polars.parquet": polars_file(),
}


def held(data: bytes, name: str) -> ShardRows:
    """What is read, held to what holds of everything that is read."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    rows = read(data, name, max_row_bytes=100_000)  # which balances the account
    assert time.process_time() - begun < LONGEST_SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_GROWTH * 1024
    assert set(rows.rejected["reason"]) <= set(REASONS)
    assert all(rows.rejected["detail"].str.len_chars() > 0)
    assert all(rows.rejected["excerpt"].str.len_chars() <= 200)
    assert not any(rows.accepted[name].str.contains("\0", literal=True).any() for name in ("response", "messages"))
    return rows


@pytest.mark.parametrize("name", FILES)
def test_the_files_themselves_are_read(name: str) -> None:
    rows = held(FILES[name], name)
    assert rows.accepted.height > 10
    assert rows.file_problem is None


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(FILES)).flatmap(lambda name: st.tuples(mutated(FILES[name]), st.just(name))))
def test_mutated_files_are_read_and_accounted_for(file: tuple[bytes, str]) -> None:
    held(*file)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([name for name in FILES if name.endswith("parquet")]), st.data())
def test_footers_and_page_headers_that_are_changed(name: str, data: st.DataObject) -> None:
    """Changes where they hurt: in the footer, and in the first bytes of pages."""
    whole = bytearray(FILES[name])
    footer = int.from_bytes(whole[-8:-4], "little")
    metadata = pq.ParquetFile(io.BytesIO(bytes(whole))).metadata
    starts = [
        metadata.row_group(group).column(column).data_page_offset
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    ]
    for _ in range(data.draw(st.integers(1, 5))):
        if data.draw(st.booleans()):
            place = len(whole) - 8 - footer + data.draw(st.integers(0, footer - 1))
        else:
            place = data.draw(st.sampled_from(starts)) + data.draw(st.integers(0, 24))
        whole[place] = data.draw(st.integers(0, 255))
    held(bytes(whole), name)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_page_headers_of_any_bytes_are_refused_or_planned(data: st.DataObject) -> None:
    """The reader of page headers by itself, with a footer that says that they are where these bytes are."""
    whole = FILES["zstd.parquet"]
    parquet = pq.ParquetFile(io.BytesIO(whole))
    junk = data.draw(st.binary(max_size=64))
    start = parquet.metadata.row_group(0).column(0).dictionary_page_offset or 4
    changed = whole[:start] + junk + whole[start + len(junk) :]
    with contextlib.suppress(Refused):
        found = list(plans(io.BytesIO(changed), parquet.schema, 100 * MIB))
        assert [group for plan in found for group in plan.groups] == [0, 1, 2]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated(LINES))
def test_lines_are_read_alike_however_they_are_packed(data: bytes) -> None:
    plain, packed = held(data, "a.jsonl"), held(gzip.compress(data), "a.jsonl.gz")
    assert plain.accepted.equals(packed.accepted)
    assert plain.rejected.equals(packed.rejected)


@pytest.mark.parametrize(
    "field", ["image", "images", "image_url", "prompt", "response", "responses", "messages", "steps"]
)
@pytest.mark.parametrize("depth", [10, 100, 253, 400, 900, 1020, 5000])
def test_values_inside_one_another_stop_nothing(field: str, depth: int) -> None:
    """However deep the stack is already, and a run's is deep."""
    for opens, closes in (("[", "]"), ('{"bytes":', "}"), ('{"image":[', "]}"), ('[{"role":"user","content":', "}]")):
        others = ",".join(f'"{name}":"x"' for name in ("prompt", "response") if name != field)
        row = f'{{{others},"{field}":{opens * depth}1{closes * depth}}}\n'.encode()
        rows = held(LINES + row + LINES, "a.jsonl")
        assert rows.rows_in == 2 * len(ROWS) * 4 + 1


def test_an_image_in_a_list_in_a_list_is_found() -> None:
    assert list(image_sources([[[["a.png"], "b.png"]]])) == ["a.png", "b.png"]


def test_no_file_at_all_is_a_problem_and_no_error(tmp_path: Path) -> None:
    for name in FILES:
        assert held(b"", name).file_problem is not None
        assert read(tmp_path / name, name).file_problem is not None
