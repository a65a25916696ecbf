"""Parts of measured rows: whoever writes, makes one of several, reads, damages or is killed meanwhile."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from curation_resources.storage.digests import DigestCache
from curation_resources.storage.files import StoredFile
from curation_resources.storage.part_store import Measurements
from curation_resources.storage.warehouse import DAMAGED, Warehouse
from tests.storage.test_warehouse import at_once


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    made = Warehouse(tmp_path / "warehouse", DigestCache())
    made.prepare()
    return made


def rows_of(ids: str, value: float = 0.0) -> pl.DataFrame:
    return pl.DataFrame({"sample_id": list(ids), "value": [value] * len(ids)}, schema_overrides={"value": pl.Float64})


def measured(warehouse: Warehouse) -> Measurements:
    return Measurements(warehouse, "signals/m/base/s/0f")


def test_nothing_measured(warehouse: Warehouse) -> None:
    empty = measured(warehouse)
    assert empty.missing(pl.Series(["a", "a", "b"])) == {"a", "b"}
    assert empty.rows(pl.Series(["a"])) is None
    assert empty.held(pl.Series(["a"])).is_empty()
    assert empty.names() == set()


def test_what_was_appended_comes_back_in_order_of_sample_id(warehouse: Warehouse) -> None:
    store = measured(warehouse)
    store.append(rows_of("db", 1.0))
    store.append(rows_of("ac", 2.0))
    assert store.missing(pl.Series(["a", "x", "d"])) == {"x"}
    found = store.rows(pl.Series(["d", "a", "x", "d", "b"]))
    assert found is not None
    assert found.rows() == [("a", 2.0), ("b", 1.0), ("d", 1.0)]


def test_of_samples_that_were_not_measured_there_are_no_rows_but_columns(warehouse: Warehouse) -> None:
    store = measured(warehouse)
    store.append(rows_of("a"))
    for wanted in (pl.Series(["x"]), pl.Series("sample_id", [], dtype=pl.String), pl.Series([])):
        found = store.rows(wanted)
        assert found is not None
        assert found.schema == rows_of("a").schema
        assert found.is_empty()


def test_equal_rows_make_one_part_and_a_part_is_never_changed(warehouse: Warehouse) -> None:
    store = measured(warehouse)
    first = store.append(rows_of("ab", 1.0))
    assert store.append(rows_of("ab", 1.0)) == first
    assert store.append(rows_of("ab", 2.0)) != first
    assert len(warehouse.names(store.folder)) == 2


def test_what_another_process_adds_is_found(warehouse: Warehouse) -> None:
    mine, other = measured(warehouse), measured(warehouse)
    mine.append(rows_of("a", 1.0))
    assert mine.missing(pl.Series(["a", "b"])) == {"b"}
    other.append(rows_of("b", 2.0))
    assert mine.missing(pl.Series(["a", "b"])) == set()
    found = mine.rows(pl.Series(["a", "b"]))
    assert found is not None
    assert found["value"].to_list() == [1.0, 2.0]


parts = st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5, unique=True), min_size=1, max_size=5)


@settings(deadline=None, max_examples=40)
@given(parts=parts, seed=st.integers(0, 100))
def test_overlapping_parts_give_the_same_rows_whatever_the_order_of_appends(
    parts: list[list[str]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    frames = [rows_of("".join(ids), float(number)) for number, ids in enumerate(parts)]
    wanted = pl.Series(list("abcdefx"))
    results = []
    for turn in range(2):
        store = measured(Warehouse(tmp_path_factory.mktemp("warehouse")))
        order = random.Random(seed + turn).sample(frames, len(frames))
        # Two parts that hold one sample: the part that sorts first counts, by the slow way.
        slow: dict[str, tuple[str, float]] = {}
        for frame in order:
            name = store.append(frame)
            for sample_id, value in frame.iter_rows():
                slow[sample_id] = min(slow.get(sample_id, (name, value)), (name, value))
            if turn:
                store.names()  # read part by part, or all at once
        found = store.rows(wanted)
        assert found is not None
        assert dict(found.iter_rows()) == {sample_id: value for sample_id, (_, value) in slow.items()}
        assert found["sample_id"].is_sorted()
        assert store.missing(wanted) == set("abcdefx") - set(slow)
        results.append(found)
    assert_frame_equal(*results)


def test_large_overlapping_parts_too(warehouse: Warehouse) -> None:
    """Enough rows for a scan that works in parallel to mix up the order of parts."""
    store = measured(warehouse)
    ids = [f"{number:06d}" for number in range(60_000)]
    by_part = {}
    for value in range(4):
        frame = pl.DataFrame({"sample_id": ids[value * 5000 :], "value": value})
        by_part[store.append(frame)] = frame
    first_part = sorted(by_part)[0]
    expected = {}
    for name in sorted(by_part, reverse=True):
        expected.update(dict(by_part[name].iter_rows()))
    found = store.rows(pl.Series(ids))
    assert found is not None
    assert dict(found.iter_rows()) == expected
    assert set(store.held(pl.Series(ids[15_000:]))["part"]) == {first_part}


def test_writers_and_readers_of_one_signal_at_once(warehouse: Warehouse) -> None:
    def work(number: int) -> None:
        store = measured(warehouse)
        for turn in range(10):
            store.append(pl.DataFrame({"sample_id": [f"{number}-{turn}", "shared"], "value": [float(number), 0.0]}))
            found = store.rows(pl.Series([f"{number}-{turn}", "shared"]))
            assert found is not None
            assert len(found) == 2

    at_once(work, 4)
    everyone = pl.Series([f"{number}-{turn}" for number in range(4) for turn in range(10)])
    assert measured(warehouse).missing(everyone) == set()


WRITER = """
import sys
from pathlib import Path
import polars as pl
from curation_resources.storage.part_store import Measurements
from curation_resources.storage.files import StoredFile
from curation_resources.storage.warehouse import Warehouse

warehouse = Warehouse(Path(sys.argv[1]))
store = Measurements(warehouse, "signals")
turn = 0
while True:
    frame = pl.DataFrame({"sample_id": [f"{sys.argv[2]}-{turn}-{i}" for i in range(20_000)], "turn": turn})
    store.append(frame)
    warehouse.write_table("t/a.parquet", frame, {"turn": str(turn)})
    warehouse.write_json("d/a.json", {"turn": turn, "text": "x" * 100_000})
    print(turn, flush=True)
    turn += 1
"""


def test_a_killed_writer_leaves_only_whole_files(warehouse: Warehouse) -> None:
    rng = random.Random(0)
    for turn in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(warehouse.root), str(turn)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert writer.stdout is not None
        committed = -1
        for _ in range(rng.randint(1, 4)):
            committed = int(writer.stdout.readline())
        threading.Event().wait(rng.random() * 0.03)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        store = Measurements(warehouse, "signals")
        # What was said to be committed is there, whole; nothing else is visible but whole parts.
        wanted = pl.Series([f"{turn}-{done}-{i}" for done in range(committed + 1) for i in (0, 19_999)])
        assert store.missing(wanted) == set()
        for name in warehouse.names("signals"):
            assert len(warehouse.read_table(f"signals/{name}.parquet")) == 20_000
        table = warehouse.read_table("t/a.parquet")
        assert str(table["turn"][0]) == warehouse.table_metadata("t/a.parquet")["turn"]
        assert int(table["turn"][0]) >= committed
        assert json.loads((warehouse.root / "d" / "a.json").read_bytes())["turn"] >= committed


@settings(deadline=None, max_examples=40)
@given(parts=parts, wanted=st.sets(st.sampled_from("abcdef")))
def test_compacting_changes_no_row(
    parts: list[list[str]], wanted: set[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Only parts that hold nothing else become one; every sample keeps a row, and one that had one row keeps it."""
    warehouse = Warehouse(tmp_path_factory.mktemp("warehouse"))
    store = measured(warehouse)
    held: dict[str, set[float]] = {}
    names = {}
    for number, ids in enumerate(parts):
        names[store.append(rows_of("".join(ids), float(number)))] = set(ids)
        for sample_id in ids:
            held.setdefault(sample_id, set()).add(float(number))
    store.compact(pl.Series(sorted(wanted), dtype=pl.String))
    for reader in (store, measured(warehouse)):
        found = reader.rows(pl.Series(list("abcdef")))
        assert found is not None
        rows = dict(found.iter_rows())
        assert rows.keys() == held.keys()
        assert all(value in held[sample_id] for sample_id, value in rows.items())
    own = [name for name, ids in names.items() if ids <= wanted]
    others = set(names) - set(own)
    assert others <= set(warehouse.names(store.folder))
    assert len(warehouse.names(store.folder)) == len(others) + min(len(own), 1)


def test_who_reads_while_parts_become_one_sees_every_row(warehouse: Warehouse) -> None:
    ids = [f"{number:03d}" for number in range(60)]
    stop = threading.Event()

    def work(number: int) -> None:
        store = measured(warehouse)
        if number == 0:
            for round_ in range(8):
                for sample_id in ids:
                    store.append(pl.DataFrame({"sample_id": [sample_id], "value": [float(round_)]}))
                store.compact(pl.Series(ids))
            stop.set()
            return
        seen = 0
        while not stop.is_set():
            found = store.rows(pl.Series(ids))
            count = 0 if found is None else len(found)
            assert count >= seen
            seen = count

    at_once(work, 3)
    assert len(warehouse.names(measured(warehouse).folder)) == 1


def test_a_listing_between_the_many_parts_and_the_one_is_not_believed(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is listed name by name: what came after the look passed and what went before it are not in it."""
    for ids in ("ab", "c"):
        measured(warehouse).append(rows_of(ids))
    listed = warehouse.storage.files
    looks: list[str] = []

    def files(folder: str) -> list[StoredFile]:
        looks.append(folder)
        return listed(folder)[1:] if len(looks) == 1 else listed(folder)

    monkeypatch.setattr(warehouse.storage, "files", files)
    assert measured(warehouse).missing(pl.Series(["a", "b", "c"])) == set()


def test_two_that_make_one_part_of_the_same(warehouse: Warehouse) -> None:
    ids = list("abcdefgh")
    for sample_id in ids:
        measured(warehouse).append(rows_of(sample_id))
    at_once(lambda _: measured(warehouse).compact(pl.Series(ids)), 4)
    found = measured(warehouse).rows(pl.Series(ids))
    assert found is not None
    assert found["sample_id"].to_list() == ids


@pytest.mark.parametrize("how", ["a bit", "cut off", "another part"])
def test_a_damaged_part_is_set_aside_and_what_it_held_is_missing(
    warehouse: Warehouse, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = measured(warehouse)
    bad, good = store.append(rows_of("ab", 1.0)), store.append(rows_of("cd", 2.0))
    file = warehouse.root / store.folder / f"{bad}.parquet"
    data = file.read_bytes()
    changes = {
        "a bit": data[:20] + bytes([data[20] ^ 1]) + data[21:],
        "cut off": data[: len(data) // 2],
        "another part": file.with_name(f"{good}.parquet").read_bytes(),
    }
    file.write_bytes(changes[how])
    with caplog.at_level(logging.WARNING, "curation"):
        assert measured(warehouse).missing(pl.Series(list("abcd"))) == {"a", "b"}
    assert bad in caplog.text
    assert "measured again" in caplog.text
    aside = warehouse.root / DAMAGED / store.folder / f"{bad}.parquet"
    assert aside.read_bytes() == changes[how]
    assert not file.exists()
    store = measured(warehouse)
    store.append(rows_of("ab", 1.0))
    found = store.rows(pl.Series(list("abcd")))
    assert found is not None
    assert found["value"].to_list() == [1.0, 1.0, 2.0, 2.0]


def test_parts_are_listed_only_where_something_may_be_new(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a thousand shards, each listing is long."""
    listed: list[str] = []
    real = Warehouse.names
    monkeypatch.setattr(Warehouse, "names", lambda self, folder: listed.append(folder) or real(self, folder))  # type: ignore[func-returns-value]
    store, other = measured(warehouse), measured(warehouse)
    assert store.missing(pl.Series(["a", "b", "c"])) == {"a", "b", "c"}
    listed.clear()
    store.append(rows_of("ab"))
    store.append(rows_of("c"))
    store.compact(pl.Series(["a", "b", "c"]))
    found = store.rows(pl.Series(["a", "b", "c"]))
    assert found is not None
    assert found["sample_id"].to_list() == ["a", "b", "c"]
    assert len(store.parts_of(pl.Series(["a", "c"]))) == 1
    assert listed == []
    # What another wrote meanwhile is found, since it is in no part that is known.
    other.append(rows_of("d"))
    assert store.held(pl.Series(["a", "d"]))["sample_id"].sort().to_list() == ["a", "d"]
    assert listed
    # And what another made one of several is found where it is now.
    other.compact(pl.Series(["a", "b", "c", "d"]))
    found = store.rows(pl.Series(["a", "d"]))
    assert found is not None
    assert len(found) == 2
    assert store.missing(pl.Series(["a", "d", "e"])) == {"e"}


def test_parts_that_only_come_are_no_reason_to_list_again(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of workers add some all the time."""
    store, other = measured(warehouse), measured(warehouse)
    other.append(rows_of("a"))
    real, listed = Warehouse.names, list[str]()

    def names(self: Warehouse, folder: str) -> list[str]:
        listed.append(folder)
        if len(listed) < 20:
            other.append(rows_of(chr(ord("b") + len(listed))))
        return real(self, folder)

    monkeypatch.setattr(Warehouse, "names", names)
    assert store.missing(pl.Series(["a"])) == set()
    assert len(listed) == 2
