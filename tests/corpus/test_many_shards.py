"""Shards that are read by several processes give the tables of one process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from curation_assets.corpus import many_shards
from curation_assets.corpus.ingest import ingest_shard, ingest_unreadable
from curation_assets.corpus.many_shards import WorkerDiedError, map_shards, processes_for
from curation_assets.operations.stages import Survey, stage_named
from curation_assets.steps.segmentation import segment_shard
from curation_assets.workspace.workspace import Workspace
from tests.corpus.deadly import PARENT, die_at_one
from tests.pipeline.workspaces import make_workspace, rows

SHARDS = {f"part-{number}.jsonl": rows(6, start=10 * number) for number in range(5)}


def workspace(folder: Path, processes: str) -> tuple[Workspace, list[str]]:
    made = make_workspace(folder, folder / "no-model", SHARDS)
    (folder / "landing" / "bad.jsonl").write_text('{"prompt": "p"}\nnot json\n')
    text = made.config_file.read_text().replace("engine: {", f"engine: {{reading_processes: {processes}, ")
    made.config_file.write_text(text)
    loaded = Workspace.load(made.config_file)
    return loaded, list(loaded.landing.digests(loaded.landing.files()))


def stored(own: Workspace) -> dict[str, bytes]:
    root = own.folder / "warehouse" / "corpus"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.parquet"))}


def test_tables_and_accounts_are_the_same(tmp_path: Path) -> None:
    one, shards = workspace(tmp_path / "one", "1")
    three, _ = workspace(tmp_path / "three", "3")
    assert (processes_for(one, shards), processes_for(three, shards)) == (1, 3)
    assert list(map_shards(one, shards, ingest_shard)) == list(map_shards(three, shards, ingest_shard))
    assert stored(one) == stored(three)
    assert len(stored(one)) == 12


def test_by_default_little_is_read_by_this_process_and_much_by_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, shards = workspace(tmp_path, "null")
    assert processes_for(own, shards) == 1
    monkeypatch.setattr(many_shards, "LEAST_BYTES", 1)
    monkeypatch.setattr(many_shards, "cores", lambda: 4)
    assert processes_for(own, shards) == 4
    assert processes_for(own, shards[:1]) == 1


def test_a_file_that_ends_its_process_is_not_read_by_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own, shards = workspace(tmp_path / "w", "2")
    twin, _ = workspace(tmp_path / "twin", "1")
    monkeypatch.setenv(PARENT, str(os.getpid()))
    found = dict(zip(shards, map_shards(own, shards, die_at_one, ingest_unreadable), strict=True))
    expected = dict(zip(shards, map_shards(twin, shards, ingest_shard), strict=True))
    deadly = found.pop("part-1.jsonl")
    del expected["part-1.jsonl"]
    assert found == expected
    assert deadly.file_problem is not None
    assert "part-1.jsonl ended the process that read it" in deadly.file_problem
    assert own.warehouse.read_table("corpus/rejected_rows/part-1.jsonl.parquet")["reason"].to_list() == ["ends_process"]
    assert "are processed one at a time" in caplog.text
    # It has been seen: it is not outdated until its content changes.
    digests = own.landing.digests(own.landing.files())
    for shard in shards:
        segment_shard(own, shard)
    assert Survey(own, digests).outdated(stage_named("corpus"), None) == []


def test_without_an_answer_to_a_death_the_shard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, shards = workspace(tmp_path, "2")
    monkeypatch.setenv(PARENT, str(os.getpid()))
    with pytest.raises(WorkerDiedError, match=r"shard part-1\.jsonl"):
        list(map_shards(own, shards, die_at_one))
