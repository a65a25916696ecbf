"""Shards that are read by several processes give the tables of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation_assets.corpus import many_shards
from curation_assets.corpus.ingest import IngestedShard
from curation_assets.corpus.many_shards import ingest_shards, reading_processes
from curation_assets.workspace.workspace import Workspace
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
    assert (reading_processes(one, shards), reading_processes(three, shards)) == (1, 3)
    assert list(ingest_shards(one, shards)) == list(ingest_shards(three, shards))
    assert stored(one) == stored(three)
    assert len(stored(one)) == 12


def test_by_default_little_is_read_by_this_process_and_much_by_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, shards = workspace(tmp_path, "null")
    assert reading_processes(own, shards) == 1
    monkeypatch.setattr(many_shards, "LEAST_BYTES", 1)
    monkeypatch.setattr(many_shards, "cores", lambda: 4)
    assert reading_processes(own, shards) == 4
    assert reading_processes(own, shards[:1]) == 1


def test_when_a_process_dies_this_one_reads_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own, shards = workspace(tmp_path / "w", "2")
    twin, _ = workspace(tmp_path / "twin", "1")
    monkeypatch.setattr(many_shards, "_ingest", die_at_the_third)
    found = list(ingest_shards(own, shards))
    assert found == list(ingest_shards(twin, shards))
    assert stored(own) == stored(twin)
    assert "the rest is read one after another" in caplog.text


def die_at_the_third(shard: str) -> IngestedShard:
    """What a process does whose memory runs out over one shard."""
    import os
    import signal

    from curation_assets.corpus.ingest import ingest_shard

    if shard == "part-1.jsonl":
        os.kill(os.getpid(), signal.SIGKILL)
    return ingest_shard(many_shards._workspaces[0], shard)
