"""`curate verify`: a whole release is said to be whole, and every planted corruption is named with its file."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from curation_assets.cli import command
from curation_assets.cli.app import app
from curation_assets.releases.data import ReleaseError
from curation_assets.releases.file_names import CARD, CHECKSUMS, DATA_JSONL, DATA_PARQUET, MANIFEST, PROVENANCE
from curation_assets.releases.verify import verify_release
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.files import FolderStorage
from tests.pipeline.workspaces import make_workspace, release_folder, release_subset, rows, run

PICTURE = b"\x89PNG one"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workspace:
    """A workspace with a release."""
    folder = tmp_path_factory.mktemp("released")
    workspace = make_workspace(folder, tiny_model, {"a.jsonl": rows(12)})
    run(workspace)
    release_subset(workspace)
    return workspace


def resum(release: Path, *names: str) -> None:
    """Make checksums and manifest agree with files that were changed, as somebody would who hides it."""
    manifest = json.loads((release / MANIFEST).read_text())
    for name in names:
        if name in manifest["files"]:
            data = (release / name).read_bytes()
            manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (release / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    lines = []
    for line in (release / CHECKSUMS).read_text().splitlines():
        _, name = line.split("  ", 1)
        lines.append(f"{hashlib.sha256((release / name).read_bytes()).hexdigest()}  {name}\n")
    (release / CHECKSUMS).write_text("".join(lines))


def changed_manifest(release: Path, **changes: object) -> None:
    manifest = json.loads((release / MANIFEST).read_text()) | changes
    (release / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def changed_lines(release: Path, change: Callable[[list[str]], list[str]]) -> None:
    path = release / DATA_JSONL
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def changed_rows(release: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    path = release / DATA_PARQUET
    change(pl.read_parquet(path)).write_parquet(path)


def flipped(path: Path, at: int = -20) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def swapped(lines: list[str]) -> list[str]:
    return [lines[1], lines[0], *lines[2:]]


def first_twice(frame: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([frame.head(1), frame.head(len(frame) - 1)])


def reworded(lines: list[str]) -> list[str]:
    first = json.loads(lines[0])
    first["messages"][-1]["content"] = "Something else."
    return [json.dumps(first) + "\n", *lines[1:]]


def hidden(corrupt: Callable[[Path], object], *names: str) -> Callable[[Path], None]:
    """A corruption with sums that were made anew."""

    def both(release: Path) -> None:
        corrupt(release)
        resum(release, *names)

    return both


def no_such_file(name: str) -> Callable[[Path], None]:
    return lambda release: (release / name).unlink()


def with_foreign_image(release: Path) -> None:
    (release / "images").mkdir()
    (release / "images" / "0123").write_bytes(PICTURE)
    with (release / CHECKSUMS).open("a") as sums:
        sums.write(f"{hashlib.sha256(PICTURE).hexdigest()}  images/0123\n")


CORRUPTIONS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a bit of the Parquet file": (lambda r: flipped(r / DATA_PARQUET), DATA_PARQUET, "checksum"),
    "a bit of the lines": (lambda r: flipped(r / DATA_JSONL), DATA_JSONL, "checksum"),
    "the card reworded": (lambda r: (r / CARD).write_text("# Free\n"), CARD, "checksum"),
    "a bit of the manifest": (lambda r: changed_manifest(r, code="other"), MANIFEST, "checksum"),
    "the Parquet file cut short": (
        hidden(lambda r: (r / DATA_PARQUET).write_bytes((r / DATA_PARQUET).read_bytes()[:99]), DATA_PARQUET),
        DATA_PARQUET,
        "cannot be read",
    ),
    "no Parquet file": (no_such_file(DATA_PARQUET), DATA_PARQUET, "is missing"),
    "no lines": (no_such_file(DATA_JSONL), DATA_JSONL, "is missing"),
    "no card": (no_such_file(CARD), CARD, "is missing"),
    "no manifest": (no_such_file(MANIFEST), MANIFEST, "is missing"),
    "no checksums": (no_such_file(CHECKSUMS), CHECKSUMS, "is missing"),
    "no provenance": (no_such_file(PROVENANCE), PROVENANCE, "is missing"),
    "a file too many": (lambda r: (r / "data/extra.parquet").write_bytes(b"x"), "data/extra.parquet", "no checksum"),
    "checksums that are none": (lambda r: (r / CHECKSUMS).write_text("hello\n"), CHECKSUMS, "line 1 is not"),
    "a manifest that is no JSON": (lambda r: (r / MANIFEST).write_text("{"), MANIFEST, "is not JSON"),
    "another schema": (lambda r: changed_manifest(r, schema_version=99), MANIFEST, "schema version 99"),
    "a row taken out, hidden": (
        hidden(lambda r: changed_lines(r, lambda lines: lines[1:]), DATA_JSONL),
        DATA_JSONL,
        "samples of the Parquet file",
    ),
    "rows in another order, hidden": (
        hidden(lambda r: changed_lines(r, swapped), DATA_JSONL),
        DATA_JSONL,
        "samples of the Parquet file in the same order",
    ),
    "a response reworded, hidden": (
        hidden(lambda r: changed_lines(r, reworded), DATA_JSONL),
        DATA_JSONL,
        "messages that differ",
    ),
    "a line that is no JSON, hidden": (
        hidden(lambda r: changed_lines(r, lambda lines: [*lines[:-1], "{\n"]), DATA_JSONL),
        DATA_JSONL,
        "is not a JSON object",
    ),
    "rows of the Parquet file taken out, hidden": (
        hidden(lambda r: changed_rows(r, lambda frame: frame.head(3)), DATA_PARQUET),
        DATA_PARQUET,
        "has 3 rows",
    ),
    "a row twice, hidden": (
        hidden(lambda r: changed_rows(r, first_twice), DATA_PARQUET),
        DATA_PARQUET,
        "contains a sample twice",
    ),
    "ranks turned round, hidden": (
        hidden(lambda r: changed_rows(r, lambda frame: frame.reverse()), DATA_PARQUET),
        DATA_PARQUET,
        "is not sorted by rank",
    ),
    "a response of the Parquet file alone reworded, hidden": (
        hidden(lambda r: changed_rows(r, lambda f: f.with_columns(response=pl.lit("Poison"))), DATA_PARQUET),
        DATA_PARQUET,
        "responses that differ",
    ),
    "scores changed, hidden": (
        hidden(lambda r: changed_rows(r, lambda f: f.with_columns(score=pl.lit(9.0))), DATA_PARQUET),
        DATA_PARQUET,
        "does not match the selection",
    ),
    "scores of steps changed, hidden": (
        hidden(
            lambda r: changed_rows(r, lambda f: f.with_columns(pl.col("step_scores").list.eval(pl.element() + 1))),
            DATA_PARQUET,
        ),
        DATA_PARQUET,
        "does not match the steps",
    ),
    "a column taken out, hidden": (
        hidden(lambda r: changed_rows(r, lambda f: f.drop("prompt_id")), DATA_PARQUET),
        DATA_PARQUET,
        "has no column prompt_id",
    ),
    "a count of the manifest, hidden": (
        hidden(lambda r: changed_manifest(r, rows=5000)),
        DATA_PARQUET,
        "the manifest states 5000",
    ),
    "a manifest that names no files, hidden": (
        hidden(lambda r: changed_manifest(r, files={})),
        MANIFEST,
        f"does not list {DATA_PARQUET}",
    ),
    "an image that no row shows": (with_foreign_image, "images/0123", "is not used by any row"),
}


def copied(workspace: Workspace, folder: Path) -> Path:
    release = folder / "copy"
    shutil.copytree(release_folder(workspace), release)
    return release


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_each_corruption_is_found_and_named(made: Workspace, tmp_path: Path, name: str) -> None:
    release = copied(made, tmp_path)
    corrupt, file, what = CORRUPTIONS[name]
    corrupt(release)
    found = verify_release(FolderStorage(tmp_path), "copy")
    assert any(problem.file == file and what in problem.what for problem in found), found


def test_a_whole_release_has_no_problem_wherever_it_lies(made: Workspace, tmp_path: Path) -> None:
    assert len(CORRUPTIONS) >= 20
    release = copied(made, tmp_path)
    assert verify_release(FolderStorage(tmp_path), "copy") == []
    # Provenance differs between releases of one content.
    (release / PROVENANCE).write_text("{}")
    assert verify_release(FolderStorage(tmp_path), "copy") == []
    # Sums made anew of what was not changed change nothing.
    resum(release, DATA_PARQUET, DATA_JSONL)
    assert verify_release(FolderStorage(tmp_path), "copy") == []
    with pytest.raises(ReleaseError):
        verify_release(FolderStorage(tmp_path), "nothing")


def test_a_line_ends_where_its_json_ends(tmp_path: Path, tiny_model: Path) -> None:
    shard = [row | {"response": row["response"].replace(" ", "\u2028", 1)} for row in rows(12)]
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": shard})
    run(workspace)
    release_subset(workspace)
    release = release_folder(workspace)
    assert "\u2028" in (release / DATA_JSONL).read_text(encoding="utf-8")
    assert verify_release(FolderStorage(release.parent), release.name) == []


def test_the_command_says_it(made: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.console, "width", 200)
    config = ["--config", str(made.config_file)]

    def said(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["verify", *words])
        return result.exit_code, result.output

    assert said("best", *config)[0] == said("best@1", *config)[0] == 0
    assert "is intact" in said("best", *config)[1]
    release = copied(made, tmp_path)
    assert said(str(release)) == (0, f"{release} is intact\n")
    flipped(release / DATA_JSONL)
    code, output = said(str(release))
    assert code == 1
    assert DATA_JSONL in output
    assert "is damaged. Restore it" in output
    assert "there is no release best@9; releases are best@1" in said("best@9", *config)[1]
    assert "did you mean 'best'" in said("bes", *config)[1]
