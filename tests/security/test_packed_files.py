"""Packed files that unpack without end are read no further than is bounded, and named with the mend."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from curation_assets.corpus import parquet_pages, parquet_rows, raw_rows, reading
from curation_assets.corpus.first_rows import copy_first_rows
from curation_assets.corpus.ingest import ingest_shard
from curation_assets.operations.plan_tokens import read_pool
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.digests import DigestCache
from curation_resources.storage.landing import FolderLanding
from tests.corpus.helpers import gz, jsonl, read, reasons

MIB = 2**20
GOOD = {"prompt": "2 + 2?", "response": "4"}
FAR = "unpacks_too_far"


def written(table: pa.Table, **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, store_schema=False, **({"compression": "zstd"} | options))
    return stream.getvalue()


def repeated(value: Any, count: int) -> pa.Array:
    """A value that many times, as a dictionary and so many indices."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([value]))


@pytest.fixture
def arrow() -> Iterator[pa.MemoryPool]:
    """The memory that Arrow takes in the test."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    yield pool
    pa.set_memory_pool(before)


def one_page(size: int) -> bytes:
    table = pa.table({"prompt": ["q", "q"], "response": ["4", "0" * size]})
    return written(table, use_dictionary=False, row_group_size=1)


def values_in_a_row(count: int) -> bytes:
    """A row that holds a list of so many nulls, in some hundred bytes."""
    held = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), pa.nulls(count, pa.int8()))
    return written(pa.table({"prompt": ["q"], "response": ["r"], "more": held}))


def dictionary(size: int, count: int) -> bytes:
    """So many rows with one response of a size, kept once."""
    columns = {"prompt": repeated("q", count), "response": repeated("x" * size, count)}
    return written(pa.table(columns), dictionary_pagesize_limit=2**30)


def dictionary_in_a_row(size: int, count: int) -> bytes:
    """A row with a list of one text of a size, kept once, so many times."""
    held = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), repeated("x" * size, count))
    table = pa.table({"prompt": ["q"], "response": ["r"], "steps": held})
    return written(table, dictionary_pagesize_limit=2**30)


def test_a_page_is_measured_before_it_is_unpacked(arrow: pa.MemoryPool) -> None:
    bomb = one_page(70 * MIB)
    taken = arrow.max_memory()
    assert len(bomb) < 20_000
    rows = read(bomb, "a.parquet")
    assert reasons(rows) == [(1, -1, FAR)]
    assert rows.accepted["response"].to_list() == ["4"]
    assert rows.file_problem is not None
    assert "'response' unpacks from" in rows.file_problem
    assert "smaller pages" in rows.file_problem
    assert arrow.max_memory() - taken < 10 * MIB
    sound = read(one_page(6 * MIB), "a.parquet")
    assert (sound.accepted.height, sound.file_problem) == (2, None)


def test_values_of_one_row_are_counted_before_they_are_read(arrow: pa.MemoryPool) -> None:
    bomb = values_in_a_row(50_000_000)
    assert len(bomb) < 2000
    taken = arrow.max_memory()
    rows = read(bomb, "a.parquet")
    assert reasons(rows) == [(-1, -1, FAR)]
    assert "'more.list.element' holds 50,000,000 values" in rows.rejected["detail"][0]
    assert arrow.max_memory() <= taken
    sound = read(values_in_a_row(1000), "a.parquet")
    assert sound.accepted["extra"][0] == '{"more":[' + "null," * 999 + "null]}"
    # So many may be read together, and are then too many for a row.
    assert reasons(read(values_in_a_row(5_000_000), "a.parquet")) == [(0, -1, "row_too_long")]


def test_a_text_that_is_kept_once_is_not_repeated_without_end(
    arrow: pa.MemoryPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row is a sound one of seven MiB; together they would be 7 TB."""
    monkeypatch.setattr(raw_rows, "UNPACKED_BYTES", 100 * MIB)
    bomb = dictionary(7 * MIB, 1_000_000)
    assert len(bomb) < 10_000
    rows = read(bomb, "a.parquet")
    assert set(rows.rejected["reason"]) == {FAR}
    assert 0 < rows.accepted.height <= 100 // 7
    assert arrow.max_memory() < 200 * MIB


def test_a_text_that_is_kept_once_is_not_repeated_in_a_row(arrow: pa.MemoryPool) -> None:
    """A row of 70 GB."""
    bomb = dictionary_in_a_row(7 * MIB, 10_000)
    taken = arrow.max_memory()
    rows = read(bomb, "a.parquet")
    assert reasons(rows) == [(0, -1, "row_too_long")]
    assert arrow.max_memory() - taken < 70 * MIB


def test_rows_that_take_no_bytes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_rows, "UNPACKED_BYTES", 256 * 10_000)
    rows = read(dictionary(1, 50_000), "a.parquet")
    assert rows.accepted.height == 10_000 - 10_000 % parquet_pages.BATCH_ROWS
    assert reasons(rows) == [(rows.accepted.height, -1, FAR)]
    assert ".jsonl, unpacked" in rows.rejected["detail"][0]
    assert read(dictionary(1, 9_000), "a.parquet").file_problem is None


def test_beginnings_that_are_repeated_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """DELTA_BYTE_ARRAY: each value is that of the one before, but for nothing."""
    monkeypatch.setattr(parquet_pages, "BATCH_BYTES", MIB)
    table = pa.table({"prompt": ["q"] * 500, "response": ["x" * 100_000] * 500})
    data = written(table, use_dictionary=False, column_encoding={"response": "DELTA_BYTE_ARRAY"})
    assert len(data) < 20_000
    batches = list(parquet_rows.record_batches(io.BytesIO(data), 10 * MIB))
    assert max(batch.nbytes for batch in batches) < 2 * MIB
    assert sum(batch.num_rows for batch in batches) == 500
    nested = pa.table({"prompt": ["q"], "response": ["r"], "steps": [["x" * 100_000] * 500]})
    data = written(nested, use_dictionary=False, column_encoding={"steps.list.element": "DELTA_BYTE_ARRAY"})
    monkeypatch.setattr(raw_rows, "UNPACKED_BYTES", 10 * MIB)
    assert reasons(read(data, "a.parquet")) == [(-1, -1, FAR)]


def test_pages_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_rows, "UNPACKED_BYTES", 10 * MIB)
    table = pa.table({"prompt": ["q"] * 20, "response": ["0" * MIB] * 20})
    data = written(table, use_dictionary=False, data_page_size=MIB, row_group_size=4)
    rows = read(data, "a.parquet")
    assert reasons(rows) == [(8, -1, FAR)]
    assert rows.accepted.height == 8


def test_a_footer_that_lies_changes_nothing(arrow: pa.MemoryPool) -> None:
    """What counts is what the pages say, since by that Arrow unpacks."""
    bomb = one_page(70 * MIB)
    told = size_told(bomb)
    assert told > 70 * MIB
    lying = bomb.replace(varint(told, 4), varint(20, 4))
    assert size_told(lying) == 20
    taken = arrow.max_memory()
    assert reasons(read(lying, "a.parquet")) == [(1, -1, FAR)]
    assert arrow.max_memory() - taken < 10 * MIB


def size_told(data: bytes) -> int:
    size: int = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(1).column(1).total_uncompressed_size
    return size


def varint(value: int, length: int) -> bytes:
    """A number as Thrift's compact protocol writes it, in so many bytes."""
    zigzag = value << 1
    return bytes((zigzag >> 7 * place & 0x7F) | (0x80 if place + 1 < length else 0) for place in range(length))


def test_a_gzip_file_is_unpacked_so_far_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_rows, "UNPACKED_BYTES", 10 * MIB)
    line = jsonl(GOOD | {"response": "x" * 1000})
    rows = read(gz(line * 100_000), "a.jsonl.gz")
    assert 5000 < rows.accepted.height < 40_000
    assert rows.rejected["reason"].to_list() == [FAR]
    assert rows.file_problem is not None
    assert "100 times its size" in rows.file_problem
    assert read(gz(line * 9000), "a.jsonl.gz").file_problem is None
    # The same, in one line; and what is not packed may be as long as it is.
    assert FAR in read(gz(line[:-1] * 100_000), "a.jsonl.gz").rejected["reason"].to_list()
    assert read(line * 40_000).accepted.height == 40_000


def test_lines_that_take_no_bytes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_rows, "UNPACKED_BYTES", 10 * MIB)
    for line in (b"x\n", b"\n", b"{}\n"):
        rows = read(gz(jsonl(GOOD) + line * 3_000_000), "a.jsonl.gz")
        assert rows.rejected["reason"].to_list()[-1] == FAR, line
        assert rows.rows_in < 50_000


READER = """
import resource, sys
from pathlib import Path
from curation_assets.corpus import raw_rows
from curation_assets.corpus.reading import ShardReader
from curation_assets.config.corpus_settings import Corpus
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
raw_rows.UNPACKED_BYTES = 1 << 26
for path in map(Path, sys.argv[1:]):
    reader = ShardReader(path, "shard", path.name, Corpus(landing="landing"))
    print(sum(piece.rejected.height for piece in reader.pieces()), reader.file_problem)
"""


def read_elsewhere(folder: Path) -> list[str]:
    """What a process of its own says of a folder's files: rows that are rejected, and what is wrong with the file."""
    command = [sys.executable, "-c", READER, *map(str, sorted(folder.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_bombs_are_read_in_little_memory(tmp_path: Path) -> None:
    """In a process that may have 4 GiB, of which the libraries take a part."""
    bombs = {
        "a_page.parquet": one_page(70 * MIB),
        "b_row.parquet": values_in_a_row(100_000_000),
        "c_dictionary.parquet": dictionary(7 * MIB, 1_000_000),
        "d_nested.parquet": dictionary_in_a_row(7 * MIB, 100_000),
        "e_lines.jsonl.gz": gzip.compress(b"x\n" * 50_000_000, 6, mtime=0),
    }
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    found = read_elsewhere(tmp_path)
    assert len(found) == len(bombs)
    assert all(line.startswith("1 ") or "unpacks" in line for line in found), found


def test_a_footer_that_lies_about_the_packing_ends_no_process(tmp_path: Path) -> None:
    """Dictionaries that are looked into: pyarrow aborts where it is asked by which codec, and the footer names none."""
    data = dictionary(100_000, 20)
    zstd = b"response\x15\x0c"
    assert data.count(zstd) == 1
    for codec in [*range(16), 50, 127]:
        said = varint(codec, 1 if codec < 64 else 2)
        (tmp_path / f"{codec:03}.parquet").write_bytes(data.replace(zstd, zstd[:-1] + said))
    found = read_elsewhere(tmp_path)
    assert len(found) == 18
    # By their own codec all rows are read; else the file is named with the reason.
    assert [number for number, line in enumerate(found) if line == "0 None"] == [6]
    assert all(line.startswith("1 ") and "None" not in line for line in (*found[:6], *found[7:])), found


def test_looks_before_a_run_are_bounded_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A dry run and a plan read the heads of files: of a row no more than tells that it is too long."""
    landing = tmp_path / "landing"
    landing.mkdir()
    (landing / "a.jsonl.gz").write_bytes(gz(jsonl(GOOD) + b"x" * 20 * MIB))
    (landing / "b.parquet").write_bytes(one_page(70 * MIB))
    (landing / "c.parquet").write_bytes(dictionary(MIB, 2000))
    area = FolderLanding(landing, DigestCache())
    sizes = {}
    for file in area.files():
        copy_first_rows(area, file, tmp_path / file.name, 8_000_000, rows=5)
        sizes[file.name] = (tmp_path / file.name).stat().st_size
    with gzip.open(tmp_path / "a.jsonl.gz") as stream:
        assert len(stream.read()) == len(jsonl(GOOD)) + 8_000_002
    assert pl.read_parquet(tmp_path / "c.parquet").height == 5
    assert max(sizes.values()) < MIB
    workspace = make(tmp_path)
    pool = read_pool(workspace, tmp_path / "scratch")
    assert sorted(problem.split(":")[0] for problem in pool.problems) == ["b.parquet", "c.parquet"]


def test_bad_rows_are_written_as_they_come(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file of nothing but bad rows is held in memory no more than one of good ones."""
    monkeypatch.setattr(reading, "PIECE_BYTES", 10_000)
    (tmp_path / "landing").mkdir()
    data = b"".join(jsonl(GOOD | {"response": f"{n}"}) + b"[1]\nx\n" for n in range(500))
    (tmp_path / "landing" / "a.jsonl").write_bytes(data)
    workspace = make(tmp_path)
    found = ingest_shard(workspace, "a.jsonl")
    assert found.account.balanced
    assert found.reasons == {"not_json": 500, "not_object": 500}
    path = "corpus/rejected_rows/a.jsonl.parquet"
    with workspace.warehouse.storage.open(path) as stream:
        assert pq.ParquetFile(stream).num_row_groups > 10
    whole = read(data)
    assert workspace.warehouse.read_table(path).drop("shard").equals(whole.rejected.drop("shard"))
    assert workspace.warehouse.table_metadata(path) == workspace.warehouse.table_metadata(
        "corpus/raw_corpus/a.jsonl.parquet"
    )


def make(folder: Path) -> Workspace:
    config = folder / "curation.yaml"
    config.write_text("corpus: {landing: ./landing}\ntargets: [{name: base, model: ./m, warmup: none}]\n")
    return Workspace.load(config)
