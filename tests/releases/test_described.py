"""What a release says of itself to others: card, croissant, schema, changes against the one before, its page."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML
from typer.testing import CliRunner

from curation_assets.cli.app import app
from curation_assets.releases import data
from curation_assets.releases.card import license_of
from curation_assets.releases.changes import changed_settings, changes_of
from curation_assets.releases.data import write_parquet
from curation_assets.releases.manifest_schema import manifest_schema
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import landed, make_workspace, release_folder, release_subset, rows, run, write_shard

READ_CROISSANT = """
import json, sys
import mlcroissant
dataset = mlcroissant.Dataset(sys.argv[1])
assert not dataset.metadata.ctx.issues.errors, dataset.metadata.ctx.issues.report()
rows = list(dataset.records("rows"))
print(json.dumps([[row["rows/sample_id"].decode() for row in rows], [float(row["rows/score"]) for row in rows]]))
"""
# A process of its own: what it logs with holds on to the streams of the test that first imports it.

LICENSES = "releases: {policy: manual, licenses: {a.jsonl: apache-2.0, b.jsonl: cc-by-4.0}}"


def release(workspace: Workspace) -> None:
    release_subset(workspace)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workspace:
    """Two releases: the second one has another file."""
    workspace = make_workspace(tmp_path_factory.mktemp("described"), tiny_model, {"a.jsonl": rows(10)})
    config = workspace.config_file
    config.write_text(re.sub(r"releases: .*", LICENSES, config.read_text()))
    workspace = Workspace.load(config)
    run(workspace)
    release(workspace)
    write_shard(landed(workspace) / "b.jsonl", rows(10, start=40))
    run(workspace)
    release(workspace)
    return workspace


def manifest(workspace: Workspace, number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((release_folder(workspace, number) / "manifest.json").read_text())
    return found


def frame(workspace: Workspace, number: int) -> pl.DataFrame:
    return pl.read_parquet(release_folder(workspace, number) / "data" / "train.parquet")


def test_the_manifest_is_as_its_schema_says(made: Workspace) -> None:
    schema = json.loads(CliRunner().invoke(app, ["schema", "--manifest"]).output)
    assert schema == manifest_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for number in (1, 2):
        jsonschema.validate(manifest(made, number), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest(made, 1) | {"schema_version": 2}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest(made, 1) | {"more": 1}, schema)


def test_croissant_is_valid_and_reads_the_rows(made: Workspace) -> None:
    command = [sys.executable, "-c", READ_CROISSANT, str(release_folder(made, 2) / "croissant.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ids, scores = json.loads(done.stdout)
    expected = frame(made, 2)
    assert ids == expected["sample_id"].to_list()
    assert scores == pytest.approx(expected["score"].to_list())


def test_croissant_sees_other_bytes(made: Workspace, tmp_path: Path) -> None:
    document = json.loads((release_folder(made, 1) / "croissant.json").read_text())
    sums = manifest(made, 1)["files"]
    assert {one["@id"]: one["sha256"] for one in document["distribution"]} == {
        name: sums[name]["sha256"] for name in ("data/train.parquet", "data/train.jsonl")
    }


def test_the_front_matter_is_what_hubs_read(made: Workspace) -> None:
    card = (release_folder(made, 2) / "README.md").read_text()
    head = YAML(typ="safe").load(card.split("---\n")[1])
    assert head["license"] == "other"
    assert head["size_categories"] == ["n<1K"]
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "data/train.parquet"}]
    assert "grace" in head["tags"]
    for title in (
        "Sources",
        "Duplicates and contamination",
        "Changes from the previous release",
        "Reproduce",
        "Limits",
    ):
        assert f"## {title}" in card
    assert "| apache-2.0 |" in card
    assert "near duplicates: not checked" in card
    for picture in re.findall(r"\]\((plots/[a-z]+\.png)\)", card):
        assert (release_folder(made, 2) / picture).read_bytes().startswith(b"\x89PNG")


def test_a_licence_is_said_where_all_sources_have_it() -> None:
    assert license_of({"a": "mit", "b": "mit"}) == "mit"
    assert license_of({"a": "mit", "b": "apache-2.0"}) == "other"
    assert license_of({"a": "mit", "b": None}) is None
    assert license_of({}) is None


def test_the_second_release_says_what_changed(made: Workspace) -> None:
    before, after = frame(made, 1), frame(made, 2)
    changes = manifest(made, 2)["changes"]
    assert manifest(made, 1)["changes"] is None
    assert changes["added"] == len(set(after["sample_id"]) - set(before["sample_id"]))
    assert changes["removed"] == len(set(before["sample_id"]) - set(after["sample_id"]))
    assert changes["rescored"] == 0
    assert f"{changes['added']} rows added" in (release_folder(made, 2) / "README.md").read_text()


@given(
    before=st.dictionaries(st.integers(0, 12), st.floats(-1, 1), max_size=9),
    after=st.dictionaries(st.integers(0, 12), st.floats(-1, 1), max_size=9),
)
def test_changes_are_those_of_plain_loops(before: dict[int, float], after: dict[int, float]) -> None:
    def table(scores: dict[int, float]) -> pl.DataFrame:
        ranked = sorted(scores, key=lambda name: (-scores[name], name))
        return pl.DataFrame(
            {
                "sample_id": [str(name) for name in ranked],
                "rank": list(range(1, len(ranked) + 1)),
                "score": [scores[name] for name in ranked],
            },
            schema={"sample_id": pl.String, "rank": pl.Int64, "score": pl.Float64},
        )

    found = changes_of(table(before), table(after))
    kept = sorted(before.keys() & after.keys())
    orders = [sorted(kept, key=lambda name: (-scores[name], name)) for scores in (before, after)]
    assert (found.added, found.removed, found.kept) == (len(after) - len(kept), len(before) - len(kept), len(kept))
    assert found.moved == sum(orders[0].index(name) != orders[1].index(name) for name in kept)
    assert found.rescored == sum(before[name] != after[name] for name in kept)
    if kept:
        assert found.mean_shift == pytest.approx(sum(after[n] - before[n] for n in kept) / len(kept), abs=1e-12)


def test_settings_that_differ_are_named() -> None:
    before = {"parameters": {"score": {"alpha": 0.7, "name": "g"}}, "packages": {"torch": "1"}}
    after = {"parameters": {"score": {"alpha": 0.5, "name": "g"}}, "packages": {"torch": "1"}}
    assert changed_settings(before, after) == [("parameters.score.alpha", 0.7, 0.5)]


def test_diff_says_it(made: Workspace, tmp_path: Path) -> None:
    words = ["diff", "best@1", "best@2", "--config", str(made.config_file)]
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 0, said.output
    assert "best@1 -> best@2" in said.output
    assert "rows added, best first" in said.output
    copies = [str(release_folder(made, number)) for number in (1, 1)]
    assert "0 rows added, 0 removed" in CliRunner().invoke(app, ["diff", *copies]).output


def blocks(path: Path) -> set[bytes]:
    """The file in pieces that end where their own bytes say so, as stores that keep equal pieces once cut it."""
    data = path.read_bytes()
    ends = [match.end() for match in re.finditer(rb"[\x00-\x0f]\x80", data)]
    return {data[start:end] for start, end in pairwise([0, *ends, len(data)])}


def test_the_next_release_shares_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    texts = [draw.randbytes(1_000).hex() for _ in range(8_000)]
    before = pl.DataFrame({"response": texts})
    after = pl.DataFrame({"response": [*texts[:5], *(draw.randbytes(1_000).hex() for _ in range(3)), *texts[5:]]})

    def shared(name: str) -> float:
        paths = [tmp_path / f"{name}-{number}.parquet" for number in (1, 2)]
        for table, path in zip((before, after), paths, strict=True):
            write_parquet(table, path)
        old, new = map(blocks, paths)
        return sum(map(len, old & new)) / sum(map(len, new))

    assert shared("chunked") > 0.8
    # Three rows that came in shift all pages behind them, where they end by size.
    monkeypatch.setattr(data, "CHUNKED", "no such option")
    assert shared("plain") < 0.1


def test_a_release_has_a_page_of_its_traces(made: Workspace) -> None:
    page = (release_folder(made, 2) / "traces.html").read_text()
    assert "<title>release best@2</title>" in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
