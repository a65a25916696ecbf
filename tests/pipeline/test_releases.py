"""Releases: created once or not at all, traceable, and loaded by what people train with."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import polars as pl
import pytest

from curation_assets import tables
from curation_assets.releases import build
from curation_assets.releases.build import broken_files, make_release, next_release, read_release
from curation_assets.releases.data import ReleaseError
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import (
    content_digest,
    landed,
    lose,
    make_workspace,
    release_folder,
    release_subset,
    rows,
    run,
    stored,
    subset_ids,
    write_config,
    write_shard,
)


@pytest.fixture
def workspace(tmp_path: Path, tiny_model: Path) -> Workspace:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(10)})
    run(made)
    return made


def release(workspace: Workspace) -> tuple[build.Release, bool]:
    return release_subset(workspace)


def latest(workspace: Workspace) -> str | None:
    return workspace.warehouse.read_text(f"{tables.release_dir('best')}/LATEST")


def test_a_release_holds_the_subset_and_its_story(workspace: Workspace) -> None:
    made, new = release(workspace)
    assert new
    data = pl.read_parquet(release_folder(workspace) / "data" / "train.parquet")
    assert data["sample_id"].to_list() == subset_ids(workspace)
    lines = [json.loads(line) for line in (release_folder(workspace) / "data" / "train.jsonl").read_text().splitlines()]
    assert [line["sample_id"] for line in lines] == subset_ids(workspace)
    originals = {row["response"] for row in rows(10)}
    for line, response in zip(lines, data["response"], strict=True):
        assert line["messages"][-1] == {"role": "assistant", "content": response}
        assert response in originals
    manifest = made.manifest
    (shard,) = manifest["inputs"]
    assert shard["content_digest"] == content_digest(workspace, "a.jsonl")
    assert manifest["checkpoints"]["measured_at"] == manifest["checkpoints"]["base_model"]["digest"]
    assert "no warm-up" in manifest["parameters"]["unfaithful"][0]
    assert manifest["parameters"]["method"]["name"] == "grace"
    assert manifest["parameters"]["selector"] == {"kind": "top", "order": None}
    assert manifest["config"]["digest"] == workspace.config_digest
    assert manifest["packages"]["torch"]
    assert json.loads((release_folder(workspace) / "provenance.json").read_text())["dagster_run_id"]
    assert "best, release 1" in (release_folder(workspace) / "README.md").read_text()
    assert latest(workspace) == "1"


def test_checksums_cover_everything_but_provenance(workspace: Workspace) -> None:
    made, _ = release(workspace)
    listed = {line.split("  ")[1] for line in (release_folder(workspace) / "SHA256SUMS").read_text().splitlines()}
    folder = release_folder(workspace)
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert present - listed == {"SHA256SUMS", "provenance.json"}
    assert broken_files(workspace, made) == []
    workspace.warehouse.storage.write(f"{tables.release_dir('best')}/1/data/train.jsonl", b"{}\n")
    assert broken_files(workspace, made) == ["data/train.jsonl"]


def test_equal_content_makes_no_new_version_and_other_content_does(workspace: Workspace) -> None:
    release(workspace)
    again, new = release(workspace)
    assert (again.number, new) == (1, False)
    write_shard(landed(workspace) / "b.jsonl", rows(10, start=40))
    run(workspace)
    second, new = release(workspace)
    assert (second.number, new) == (2, True)
    assert second.manifest["parent"] == 1
    assert latest(workspace) == "2"
    assert read_release(workspace, workspace.settings.subset("best"), 1).manifest["rows"] == 5


def test_a_subset_that_is_behind_its_scores_is_not_released(workspace: Workspace) -> None:
    lose(workspace, tables.subset_path("best"))
    with pytest.raises(ReleaseError, match="not up to date"):
        next_release(workspace, workspace.settings.subset("best"))


def test_a_number_that_is_not_the_next_is_refused(workspace: Workspace) -> None:
    with pytest.raises(ReleaseError, match="not the next one"):
        make_release(workspace, workspace.settings.subset("best"), 5, "run")


def test_a_failure_in_the_middle_leaves_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise OSError("no space left on device")

    monkeypatch.setattr(build, "dataset_card", fail)
    with pytest.raises(OSError, match="no space"):
        make_release(workspace, workspace.settings.subset("best"), 1, "run")
    assert stored(workspace, tables.release_dir("best")) == []


def test_of_two_makers_one_wins_and_both_see_the_same(workspace: Workspace) -> None:
    subset = workspace.settings.subset("best")
    made: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: made.append(make_release(workspace, subset, 1, "run").manifest["content_digest"])
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert len(set(made)) == 1


def test_latest_is_mended_after_a_kill_between_folder_and_pointer(workspace: Workspace) -> None:
    release(workspace)
    lose(workspace, f"{tables.release_dir('best')}/LATEST")
    make_release(workspace, workspace.settings.subset("best"), 1, "run")
    assert latest(workspace) == "1"


def test_policy_on_change_releases_with_the_run(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path / "auto", tiny_model, {"a.jsonl": rows(6)}, policy="on_change")
    assert run(workspace).releases == ["best@1"]
    assert run(workspace).releases == []
    # The same choice from other scores is other content: its rows carry the scores.
    changed = Workspace.load(write_config(workspace.folder, tiny_model, policy="on_change", alpha=0.0))
    assert run(changed).releases == ["best@2"]


def test_parquet_loads_as_a_trainer_loads_it(workspace: Workspace) -> None:
    release(workspace)
    datasets = pytest.importorskip("datasets", reason="the datasets package is not installed")
    loaded = datasets.load_dataset(
        str(release_folder(workspace)), split="train", cache_dir=str(workspace.folder / "cache")
    )
    assert loaded[0]["messages"][-1]["role"] == "assistant"


def test_releases_of_equal_number_are_not_taken_for_one_another(tmp_path: Path, tiny_model: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the datasets package is not installed")
    for name, start in (("one", 0), ("two", 100)):
        workspace = make_workspace(tmp_path / name, tiny_model, {"a.jsonl": rows(6, start=start)})
        run(workspace)
        made, _ = release(workspace)
        assert made.number == 1
        folder = release_folder(workspace)
        loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
        assert set(loaded["sample_id"]) == set(pl.read_parquet(folder / "data/train.parquet")["sample_id"])
