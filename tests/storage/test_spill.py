"""Work on disk: the folder is gone however it ends, and memory has its bound."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl
import pytest

from curation_resources.storage.spill import SpillError, spilling

KILLED = """
import os, sys
from pathlib import Path
from curation_resources.storage.spill import spilling
with spilling(Path(sys.argv[1]), 512) as spill:
    spill.run("create table numbers as select range as n from range(300000)")
    os._exit(9)
"""


def test_what_is_loaded_comes_back_in_its_order(tmp_path: Path) -> None:
    with spilling(tmp_path / "made", 512) as spill:
        spill.run("create table numbers (n bigint)")
        spill.load(
            "insert into numbers select n from frame", [pl.DataFrame({"n": range(k, 400_000, 4)}) for k in range(4)]
        )
        spill.run("create table ordered as select n from numbers order by n desc")
        pieces = [piece["n"] for piece in spill.stream("select n from ordered")]
        assert len(pieces) > 1
        assert pl.concat(pieces).to_list() == list(range(399_999, -1, -1))
        assert spill.row("select count(*) from numbers where n < ?", [10]) == (10,)
    assert not list((tmp_path / "made").iterdir())


def test_the_folder_goes_with_an_error(tmp_path: Path) -> None:
    def interrupted() -> None:
        with spilling(tmp_path, 512) as spill:
            spill.run("create table numbers as select range as n from range(1000)")
            assert list(tmp_path.iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_goes_with_the_next_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run(command, check=False, cwd=Path(__file__).parents[2]).returncode == 9
    (left,) = tmp_path.iterdir()
    (tmp_path / "living").mkdir()
    with (tmp_path / "living" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with spilling(tmp_path, 512):
            assert not left.exists()
            assert len(list(tmp_path.iterdir())) == 2
    assert [folder.name for folder in tmp_path.iterdir()] == ["living"]


def test_too_little_memory_is_said_with_the_mend(tmp_path: Path) -> None:
    with (
        pytest.raises(SpillError, match=r"1 MiB .* Raise engine.selection_memory_mib"),
        spilling(tmp_path, 1) as spill,
    ):
        spill.run("create table texts as select md5(range::varchar) as t from range(1000000) order by t")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_replaced_and_foreign_files_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "instead").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "instead"))
    with spilling(tmp_path / "file" / "selection", 512) as spill:
        assert spill.row("select 1") == (1,)
    (place,) = (tmp_path / "instead").iterdir()
    (place / ".DS_Store").write_text("")
    with spilling(tmp_path / "file" / "selection", 512) as spill:
        assert spill.row("select 2") == (2,)
    assert [file.name for file in place.iterdir()] == [".DS_Store"]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file" / "nowhere"))
    with pytest.raises(SpillError, match="Set XDG_CACHE_HOME to a folder"), spilling(tmp_path / "file" / "x", 512):
        pass
