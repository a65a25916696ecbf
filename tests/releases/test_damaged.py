"""Releases that are damaged where they lie: commands say which file it is, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from curation_assets.cli.app import app
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import make_workspace, release_folder, rows, run


@pytest.fixture
def released(tmp_path: Path, tiny_model: Path) -> Workspace:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(4)})
    run(made)
    assert curate(made, "release", "best") == 0
    return made


def curate(workspace: Workspace, *words: str) -> int | str:
    """Zero, or what it says on standard error."""
    done = CliRunner().invoke(app, [*words, "--config", str(workspace.config_file)])
    return done.stderr if done.exit_code else 0


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"subset": "best", "number": 1})])
def test_a_damaged_manifest_is_named(released: Workspace, text: str) -> None:
    path = release_folder(released, 1) / "manifest.json"
    path.write_text(text)
    for words in (("release", "best"), ("gc", "--dry-run")):
        said = str(curate(released, *words))
        assert str(path) in said
        assert "curate verify" in said
        assert "restore the folder from a copy, or delete it" in said
        assert "Traceback" not in said


def test_nothing_is_called_unchanged_that_was_changed(released: Workspace) -> None:
    folder = release_folder(released, 1)
    with (folder / "data" / "train.jsonl").open("a") as stream:
        stream.write("{}\n")
    assert "checksums do not match for data/train.jsonl. Run `curate verify best@1`" in str(
        curate(released, "release", "best")
    )
    (folder / "SHA256SUMS").unlink()
    assert "checksums do not match for SHA256SUMS" in str(curate(released, "release", "best"))


def test_an_empty_folder_is_no_release(released: Workspace) -> None:
    (release_folder(released, 1).parent / "2").mkdir()
    assert curate(released, "release", "best") == 0
    assert curate(released, "gc", "--dry-run") == 0
