"""Releases that were tampered with, manifest and sums made to agree: an error everywhere, and no traceback."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from curation_assets.cli.app import app
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import landed, make_workspace, release_folder, release_subset, rows, run, write_shard

DATA = "data/train.parquet"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("tampered"), tiny_model, {"a.jsonl": rows(10)})
    run(workspace)
    release_subset(workspace)
    return workspace


def nulled(name: str) -> Callable[[pl.DataFrame], pl.DataFrame]:
    return lambda frame: frame.with_columns(pl.when(pl.col("rank") > 1).then(name))


CHANGES: dict[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
    "no reason": lambda f: f.drop("reason"),
    "no rank": lambda f: f.drop("rank"),
    "messages as text": lambda f: f.with_columns(messages=pl.lit("[]")),
    "no turns": lambda f: f.with_columns(messages=pl.col("messages").list.head(0)),
    "a null response": nulled("response"),
    "null messages": nulled("messages"),
    "a null rank": lambda f: f.with_columns(pl.when(pl.col("rank") < 3).then("rank")),
    "scores as text": lambda f: f.with_columns(pl.col("score").cast(pl.String)),
    "too few scores": lambda f: f.with_columns(pl.col("step_scores").list.head(1)),
    "steps outside": lambda f: f.with_columns(
        step_spans=pl.col("step_spans").list.eval(
            pl.struct(pl.element().struct.field("start"), end=pl.element().struct.field("end") + 10_000)
        )
    ),
    "another response": lambda f: f.with_columns(response=pl.lit("other")),
}


def copy_of(made: Workspace, to: Path) -> Path:
    shutil.copytree(release_folder(made), to)
    return to


def resum(release: Path, manifest: Any) -> None:
    """As somebody would who hides it."""
    if isinstance(manifest, dict) and isinstance(manifest.get("files", {}).get(DATA), dict):
        data = (release / DATA).read_bytes()
        manifest["files"][DATA] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (release / "manifest.json").write_text(json.dumps(manifest))
    names = [line.split("  ")[1] for line in (release / "SHA256SUMS").read_text().splitlines()]
    sums = [f"{hashlib.sha256((release / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (release / "SHA256SUMS").write_text("".join(sums))


def manifest_of(release: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((release / "manifest.json").read_text())
    return found


def assert_refused(release: Path, tmp_path: Path) -> None:
    """By every command that reads a release."""
    for words in (
        ["verify", str(release)],
        ["export", str(release), "--format", "messages", "--to", str(tmp_path / "exported")],
        ["report", str(release), "--to", str(tmp_path / "page.html")],
        ["diff", str(release), str(release)],
        ["push", str(release), str(tmp_path / "pushed"), "--go"],
    ):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 1, (words, done.output)
        assert isinstance(done.exception, SystemExit), (words, done.exception)
        assert done.stderr.startswith("error: "), words
    assert not (tmp_path / "exported").exists()
    assert not (tmp_path / "pushed").exists()


@pytest.mark.parametrize("name", CHANGES)
def test_rows_of_another_kind_are_refused(made: Workspace, tmp_path: Path, name: str) -> None:
    release = copy_of(made, tmp_path / "release")
    CHANGES[name](pl.read_parquet(release / DATA)).write_parquet(release / DATA)
    resum(release, manifest_of(release))
    assert_refused(release, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m | {"schema_version": 99},
        lambda m: {key: value for key, value in m.items() if key != "parameters"},
        lambda m: m | {"content_digest": None},
        lambda m: m | {"files": {**m["files"], DATA: 3}},
        lambda m: m | {"parameters": m["parameters"] | {"score": 3}},
        lambda m: [],
        lambda m: "text",
    ],
)
def test_manifests_of_another_kind_are_refused(
    made: Workspace, tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    release = copy_of(made, tmp_path / "release")
    resum(release, change(manifest_of(release)))
    assert_refused(release, tmp_path)


def test_an_empty_folder_is_no_release(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = CliRunner().invoke(app, ["verify", str(tmp_path / "empty")])
    assert "is not a release: the folder is missing or empty" in done.stderr


def test_manifests_of_before_are_read(made: Workspace, tmp_path: Path) -> None:
    release = copy_of(made, tmp_path / "release")
    resum(release, {key: value for key, value in manifest_of(release).items() if key not in ("licenses", "changes")})
    done = CliRunner().invoke(app, ["verify", str(release)])
    assert done.exit_code == 0, done.output


def test_what_is_hidden_is_seen_and_pushed_nowhere(made: Workspace, tmp_path: Path) -> None:
    release = copy_of(made, tmp_path / "release")
    (release / "data" / ".env").write_text("TOKEN=secret")
    done = CliRunner().invoke(app, ["verify", str(release)])
    assert "data/.env" in done.output
    assert_refused_push = CliRunner().invoke(app, ["push", str(release), str(tmp_path / "there"), "--go"])
    assert assert_refused_push.exit_code == 1


@pytest.mark.parametrize("to", ["hf://owner/name", "ftp://bucket/p", "hf://datasets/owner", "hf://models/a/b"])
def test_addresses_that_are_not_known_are_refused(made: Workspace, tmp_path: Path, to: str) -> None:
    done = CliRunner().invoke(app, ["push", str(release_folder(made)), to, "--go"])
    assert "Use hf://datasets/OWNER/NAME" in done.stderr
    inside = CliRunner().invoke(app, ["push", str(release_folder(made)), str(release_folder(made) / "sub"), "--go"])
    assert "is inside the release" in inside.stderr


@pytest.mark.parametrize("how", ["cut", "gone", "changed"])
def test_a_damaged_parent_stops_no_release_and_is_said(tmp_path: Path, tiny_model: Path, how: str) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(10)})
    run(workspace)
    release_subset(workspace)
    path = release_folder(workspace, 1) / DATA
    if how == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif how == "gone":
        path.unlink()
    else:
        pl.read_parquet(path).head(2).write_parquet(path)
    write_shard(landed(workspace) / "b.jsonl", rows(10, start=40))
    run(workspace)
    made, new = release_subset(workspace)
    assert (made.number, new, made.manifest["changes"]) == (2, True, None)
    assert "The previous release could not be read." in (release_folder(workspace, 2) / "README.md").read_text()
