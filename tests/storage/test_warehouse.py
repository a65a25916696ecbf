"""Tables and documents on disk: whole or not at all, whoever writes, reads or is killed meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from curation_resources.storage.warehouse import SCHEMA_VERSION, Warehouse, WarehouseError

FRAME = pl.DataFrame({"sample_id": ["b", "a"], "values": [[1.5, None], []], "text": ["größer\n", None]})


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    made = Warehouse(tmp_path / "warehouse")
    made.prepare()
    return made


def test_a_table_in_pieces_equals_one_at_once(warehouse: Warehouse) -> None:
    with warehouse.writing_table("t/a.parquet", FRAME.schema) as table:
        table.add(FRAME.head(1))
        table.add(FRAME.tail(1))
        table.metadata = {"fingerprint": "f"}
        assert warehouse.names("t") == []
    assert_frame_equal(warehouse.read_table("t/a.parquet"), FRAME)
    assert warehouse.table_metadata("t/a.parquet") == {"fingerprint": "f"}
    assert warehouse.read_columns("t/a.parquet", "text")["text"].to_list() == FRAME["text"].to_list()
    with warehouse.writing_table("t/empty.parquet", FRAME.schema):
        pass
    assert_frame_equal(warehouse.read_table("t/empty.parquet"), FRAME.clear())


def test_a_table_that_fails_in_between_leaves_the_old_one(warehouse: Warehouse) -> None:
    warehouse.write_table("t/a.parquet", FRAME, {})
    with pytest.raises(TypeError), warehouse.writing_table("t/a.parquet", FRAME.schema) as table:
        table.add(FRAME, FRAME)  # type: ignore[call-arg]
    with pytest.raises(Exception, match="not matching"), warehouse.writing_table("t/a.parquet", FRAME.schema) as table:
        table.add(FRAME.drop("text"))
    assert_frame_equal(warehouse.read_table("t/a.parquet"), FRAME)
    assert not list(warehouse.root.rglob(".*.tmp"))


def at_once(work: Callable[[int], None], count: int) -> None:
    """Run a function in many threads that begin together; the first error counts."""
    errors: list[BaseException] = []
    gate = threading.Barrier(count)

    def one(number: int) -> None:
        gate.wait()
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def everything(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


# Version


def test_a_prepared_warehouse_is_prepared_again_without_a_change(warehouse: Warehouse) -> None:
    before = (warehouse.root / "warehouse.json").stat()
    warehouse.prepare()
    assert (warehouse.root / "warehouse.json").stat().st_mtime_ns == before.st_mtime_ns
    assert warehouse.read_json("warehouse.json") == {"schema_version": SCHEMA_VERSION}


@pytest.mark.parametrize("found", [{"schema_version": SCHEMA_VERSION + 1}, {"schema_version": "1"}, {}, [1], None])
def test_another_schema_version_is_refused_with_the_mend(warehouse: Warehouse, found: object) -> None:
    warehouse.write_json("warehouse.json", found)
    with pytest.raises(WarehouseError, match=rf"this version reads {SCHEMA_VERSION}\. Name another warehouse"):
        warehouse.prepare()


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff"])
def test_a_damaged_version_file_is_refused_with_the_mend(warehouse: Warehouse, damage: bytes) -> None:
    (warehouse.root / "warehouse.json").write_bytes(damage)
    with pytest.raises(WarehouseError, match=r"is not JSON .*\. Restore it, or name another warehouse"):
        warehouse.prepare()


def test_a_place_that_cannot_hold_a_warehouse_is_refused_with_the_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(WarehouseError, match=r"Correct warehouse in curation\.yaml"):
            Warehouse(root).prepare()


# Tables


@pytest.mark.parametrize("folder", ["plain", "odd [v2] *?", "key=value", "größe"])
def test_tables_come_back_with_their_metadata(tmp_path: Path, folder: str) -> None:
    warehouse = Warehouse(tmp_path / folder)
    metadata = {"fingerprint": "0f", "größe": '{"a": 1}\n', "empty": ""}
    warehouse.write_table("scores/x=2Fy.parquet", FRAME, metadata)
    assert_frame_equal(warehouse.read_table("scores/x=2Fy.parquet"), FRAME)
    assert warehouse.table_metadata("scores/x=2Fy.parquet") == metadata
    assert warehouse.folder_metadata("scores") == {"x=2Fy": metadata}
    for lazy in (warehouse.scan("scores"), warehouse.scan_table("scores/x=2Fy.parquet")):
        assert lazy is not None
        assert_frame_equal(lazy.collect(), FRAME)


def test_tables_without_rows_or_metadata_come_back(warehouse: Warehouse) -> None:
    warehouse.write_table("a.parquet", FRAME.clear(), {})
    assert_frame_equal(warehouse.read_table("a.parquet"), FRAME.clear())
    assert warehouse.table_metadata("a.parquet") == {}


def test_writing_again_replaces_table_and_metadata(warehouse: Warehouse) -> None:
    warehouse.write_table("a.parquet", FRAME, {"fingerprint": "old", "more": "yes"})
    warehouse.write_table("a.parquet", FRAME.head(1), {"fingerprint": "new"})
    assert len(warehouse.read_table("a.parquet")) == 1
    assert warehouse.table_metadata("a.parquet") == {"fingerprint": "new"}


def test_what_is_not_there(warehouse: Warehouse) -> None:
    assert warehouse.table_metadata("none.parquet") == {}
    assert warehouse.folder_metadata("none") == {}
    assert warehouse.names("none") == []
    assert warehouse.scan("none") is None
    assert warehouse.scan_table("none.parquet") is None
    assert warehouse.read_json("none.json") is None
    assert warehouse.read_text("LATEST") is None
    assert warehouse.documents("none") == []
    with pytest.raises(FileNotFoundError):
        warehouse.read_table("none.parquet")


def test_names_are_of_whole_tables_only(warehouse: Warehouse) -> None:
    for name in ("b", "a.jsonl", "a"):
        warehouse.write_table(f"t/{name}.parquet", FRAME, {})
    for name in (".x.parquet", ".abc.tmp", "c.parquet.tmp", "d.json", ".making-1"):
        (warehouse.root / "t" / name).write_bytes(b"half")
    assert warehouse.names("t") == ["a", "a.jsonl", "b"]
    assert warehouse.documents("t") == ["d"]


def test_a_scan_is_of_the_names_that_are_there(warehouse: Warehouse) -> None:
    for name in ("a", "b", "c"):
        warehouse.write_table(f"t/{name}.parquet", pl.DataFrame({"from": [name]}), {})
    lazy = warehouse.scan("t", ["c", "gone", "a"])
    assert lazy is not None
    assert lazy.collect()["from"].to_list() == ["a", "c"]
    assert warehouse.scan("t", ["gone"]) is None
    assert warehouse.scan("t", []) is None


def test_readers_never_see_half_a_table(warehouse: Warehouse) -> None:
    frames = [pl.DataFrame({"of": [number] * (3000 * (number + 1))}) for number in range(3)]
    warehouse.write_table("t/a.parquet", frames[0], {"of": "0"})
    done = threading.Event()

    def work(number: int) -> None:
        if number == 0:
            try:
                for turn in range(60):
                    warehouse.write_table("t/a.parquet", frames[turn % 3], {"of": str(turn % 3)})
            finally:
                done.set()
        while not done.is_set():
            lazy = warehouse.scan("t")
            assert lazy is not None
            for found in (warehouse.read_table("t/a.parquet"), lazy.collect()):
                assert_frame_equal(found, frames[found["of"][0]])
            assert warehouse.folder_metadata("t")["a"]["of"] in "012"

    at_once(work, 3)


def test_documents_come_back(warehouse: Warehouse) -> None:
    document = {"b": [1, None, 0.5], "a": {"größe": "\r\n"}}
    warehouse.write_json("d/x.json", document)
    assert warehouse.read_json("d/x.json") == document
    assert warehouse.documents("d") == ["x"]


def test_of_a_folder_of_documents_only_what_changed_is_read(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        warehouse.write_json(f"d/{name}.json", {"of": name})
    warehouse.write_json("d/deeper/x.json", {})
    assert warehouse.folder_documents("d") == {name: {"of": name} for name in "abc"}
    read: list[str] = []
    real = Warehouse.read_json
    monkeypatch.setattr(Warehouse, "read_json", lambda self, path: read.append(path) or real(self, path))  # type: ignore[func-returns-value]
    warehouse.write_json("d/b.json", {"of": "another"})
    warehouse.write_json("d/d.json", {"of": "d"})
    warehouse.storage.remove("d/c.json")
    expected = {"a": {"of": "a"}, "b": {"of": "another"}, "d": {"of": "d"}}
    assert warehouse.folder_documents("d") == expected
    assert sorted(read) == ["d/b.json", "d/d.json"]
    assert warehouse.folder_documents("d") == expected
    assert len(read) == 2
    assert warehouse.folder_documents("nowhere") == {}


# Things made once


def fill_with(text: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text(text)
        (folder / "top").write_text(text)

    return fill


def test_a_folder_is_made_whole_and_only_once(warehouse: Warehouse) -> None:
    assert warehouse.create_folder("releases/s/1", fill_with("first"), last="top")
    assert not warehouse.create_folder("releases/s/1", fill_with("second"), last="top")
    assert everything(warehouse.local("releases")) == ["s", "s/1", "s/1/deep", "s/1/deep/file", "s/1/top"]
    assert warehouse.read_text("releases/s/1/deep/file") == "first"
    assert warehouse.local("releases/s/1").stat().st_mode & 0o777 == 0o755


def test_a_folder_whose_filling_fails_is_not_made(warehouse: Warehouse) -> None:
    def fill(folder: Path) -> None:
        fill_with("half")(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        warehouse.create_folder("releases/1", fill, last="top")
    assert everything(warehouse.local("releases")) == []
    assert warehouse.create_folder("releases/1", fill_with("whole"), last="top")


def test_while_a_folder_is_made_nobody_sees_it(warehouse: Warehouse) -> None:
    def fill(folder: Path) -> None:
        fill_with("half")(folder)
        assert not warehouse.local("releases/1").exists()
        assert warehouse.names("releases") == []

    assert warehouse.create_folder("releases/1", fill, last="top")


def test_of_makers_of_one_folder_exactly_one_wins(warehouse: Warehouse) -> None:
    for turn in range(10):
        made: list[int] = []
        meet = threading.Barrier(4)

        def work(number: int, turn: int = turn, made: list[int] = made, meet: threading.Barrier = meet) -> None:
            def fill(folder: Path) -> None:
                meet.wait()  # all have seen that there is no such folder
                fill_with(str(number))(folder)

            if warehouse.create_folder(f"releases/{turn}", fill, last="top"):
                made.append(number)

        at_once(work, 4)
        assert len(made) == 1
        assert {warehouse.read_text(f"releases/{turn}/{name}") for name in ("top", "deep/file")} == {str(made[0])}
    assert everything(warehouse.local("releases"))[:2] == ["0", "0/deep"]
    assert not list(warehouse.local("releases").glob(".*"))


def test_compare_and_swap_replaces_only_what_was_expected(warehouse: Warehouse) -> None:
    assert not warehouse.compare_and_swap("s/LATEST", "1", "2")
    assert warehouse.read_text("s/LATEST") is None
    assert warehouse.compare_and_swap("s/LATEST", None, "1")
    assert not warehouse.compare_and_swap("s/LATEST", None, "2")
    assert not warehouse.compare_and_swap("s/LATEST", "3", "2")
    assert warehouse.read_text("s/LATEST") == "1"
    assert warehouse.compare_and_swap("s/LATEST", "1", "2")
    assert warehouse.read_text("s/LATEST") == "2"


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_compare_and_swap_knows_any_text_again(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    warehouse = Warehouse(tmp_path_factory.mktemp("warehouse"))
    current: str | None = None
    for text in texts:
        assert warehouse.compare_and_swap("LATEST", current, text)
        current = text
        assert warehouse.read_text("LATEST") == text


def test_counting_by_compare_and_swap_loses_nothing(warehouse: Warehouse) -> None:
    def count(_: int) -> None:
        for _turn in range(15):
            while True:
                seen = warehouse.read_text("counter")
                if warehouse.compare_and_swap("counter", seen, str(int(seen or 0) + 1)):
                    break

    at_once(count, 6)
    assert warehouse.read_text("counter") == "90"
