"""`curate reproduce`: the same bytes from what is stored, whatever came since; what is said where that cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from curation_assets.cli.app import app
from curation_assets.operations.purge import purge
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import landed, make_workspace, release_folder, release_subset, rows, run, write_shard


@pytest.fixture
def made(tmp_path: Path, tiny_model: Path) -> Workspace:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(10), "b.jsonl": rows(4, start=7)})
    run(workspace)
    release_subset(workspace)
    return workspace


def reproduce(workspace: Workspace, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["reproduce", "best@1", "--config", str(workspace.config_file), *words])
    return done.exit_code, " ".join((done.output + done.stderr).split())


def changed(workspace: Workspace, before: str, after: str) -> Workspace:
    text = workspace.config_file.read_text()
    assert before in text
    workspace.config_file.write_text(text.replace(before, after))
    return Workspace.load(workspace.config_file)


def test_the_same_bytes(made: Workspace) -> None:
    code, said = reproduce(made)
    assert code == 0, said
    assert said.count(": identical") == 2
    assert "best@1 is reproduced" in said


def test_files_that_came_since_change_nothing(made: Workspace) -> None:
    # Some of these are copies of samples of the release, and better ones push some out of the subset.
    write_shard(landed(made) / "0.jsonl", [*rows(30, start=60), *rows(6)])
    run(made)
    assert made.settings.subset("best")
    code, said = reproduce(made)
    assert code == 0, said


def test_another_choice_now_changes_nothing(made: Workspace) -> None:
    run(changed(made, "fraction: 0.5", "fraction: 0.2"))
    code, said = reproduce(made)
    assert code == 0, said


def test_other_scores_are_said_and_come_back(made: Workspace, tmp_path: Path) -> None:
    other = changed(made, "alpha: 0.7", "alpha: 0.1")
    run(other)
    code, said = reproduce(other)
    assert code == 1
    assert "cannot be reproduced from the current scores" in said
    assert "--settings-to FILE" in said
    assert "are relative to" in reproduce(other, "--settings-to", str(tmp_path / "no" / "then.yaml"))[1]
    file = tmp_path / "then.yaml"
    assert reproduce(other, "--settings-to", str(file))[0] == 0
    assert "exists. Name another file with --settings-to" in reproduce(other, "--settings-to", str(file))[1]
    then = Workspace.load(file)
    summary = run(then)
    assert not any(summary.measured.values())
    assert reproduce(then) == (0, reproduce(then)[1])


def test_a_changed_file_is_named(made: Workspace) -> None:
    write_shard(landed(made) / "b.jsonl", rows(4, start=200))
    run(made)
    code, said = reproduce(made)
    assert code == 1
    assert "b.jsonl has changed" in said
    assert "was not reproduced: " in said
    assert "rows added" in said


def test_a_release_that_was_changed_since_is_said(made: Workspace) -> None:
    path = release_folder(made) / "data" / "train.jsonl"
    path.write_text("{}\n")
    code, said = reproduce(made)
    assert code == 1
    assert "can be reproduced, but its stored files are damaged: data/train.jsonl of the release does not match" in said


def test_purged_samples_are_named(made: Workspace) -> None:
    purge(made, read_stored(made, "subset", subset="best").collect()["sample_id"][0])
    run(made)
    code, said = reproduce(made)
    assert code == 1
    assert "1 samples have been purged since" in said


def test_without_the_model_the_data_come_again(made: Workspace, tiny_model: Path) -> None:
    run(made)
    other = made.folder / "moved"
    shutil.copytree(tiny_model, other)
    text = made.config_file.read_text().replace(str(tiny_model), str(other))
    made.config_file.write_text(text)
    write_shard(landed(made) / "c.jsonl", rows(2, start=90))
    assert reproduce(made)[0] == 0


def test_tampered_data_is_not_reproduced(made: Workspace) -> None:
    sums = release_folder(made) / "manifest.json"
    text = sums.read_text()
    start = text.index('"data/train.jsonl"')
    place = text.index('"sha256": "', start) + len('"sha256": "')
    sums.write_text(text[:place] + "f" * 64 + text[place + 64 :])
    code, said = reproduce(made)
    assert code == 1
    assert "data/train.jsonl: DIFFERENT" in said
