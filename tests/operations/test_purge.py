"""Purging a sample: every table is as if it had never been there, and nothing else is measured anew."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from curation_assets import tables
from curation_assets.cli.app import app
from curation_assets.config.corpus_settings import Corpus
from curation_assets.corpus.ingest import ingest_shard
from curation_assets.corpus.purging import rows_without_purged
from curation_assets.corpus.reading import read_shard
from curation_assets.defs.instance import open_instance
from curation_assets.operations.plan import make_plan
from curation_assets.operations.purge import PurgeError, find_sample, purge
from curation_assets.operations.stages import Survey, stage_named
from curation_assets.releases.build import make_release
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.purge_list import PurgedList, PurgedListError, add_purged
from curation_assets.workspace.workspace import Workspace
from tests.corpus.helpers import accounted
from tests.pipeline.workspaces import make_workspace, rows, run, write_shard

SIGNALS = ("step_gradients", "likelihoods", "token_likelihoods", "embeddings_mean")
TABLES = ("segmented_steps", *SIGNALS, "step_scores", "sample_scores", "subset", "subset_comparison", "sample_quality")
FILTERS = "filters: {repetition: {limits: {duplicate_line_share: 0.9}}}"


def outdated_shards(workspace: Workspace) -> list[str]:
    """Shards that have to be read."""
    digests = workspace.landing.digests(workspace.landing.files())
    return Survey(workspace, digests).outdated(stage_named("corpus"), None)


def moved(workspace: Workspace, place: str) -> Workspace:
    """The same with its warehouse elsewhere."""
    workspace.config_file.write_text(workspace.config_file.read_text().replace("./warehouse", place))
    return Workspace.load(workspace.config_file)


def paths_with(workspace: Workspace, sample_id: str) -> list[str]:
    """Stored tables, those of releases and checkpoints excepted, that hold a sample."""
    warehouse = workspace.warehouse
    paths = [file.path for file in warehouse.files("") if file.path.endswith(".parquet")]
    paths = [path for path in paths if not path.startswith(("releases", "checkpoints"))]
    with_ids = [path for path in paths if "sample_id" in warehouse.columns(path)]
    return [path for path in with_ids if sample_id in warehouse.read_columns(path, "sample_id")["sample_id"].to_list()]


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_a_purged_sample_was_never_there(
    tmp_path: Path, tiny_model: Path, where: str, request: pytest.FixtureRequest
) -> None:
    # The second shard holds two samples of the first one too, one of which is purged.
    first, second = rows(8), [*rows(2, start=3), *rows(4, start=50)]
    shards = {"a.jsonl": first, "b.jsonl": second}
    made = make_workspace(tmp_path / "with", tiny_model, shards, signals=SIGNALS, corpus=FILTERS, part_seconds=0.0)
    if where == "s3":
        made = moved(made, f"{request.getfixturevalue('bucket')}/w")
    run(made)
    (gone,) = (
        read_stored(made, "raw_corpus")
        .filter(pl.col("response").str.starts_with("Step 1: 3 + 1 = 4"))
        .select("sample_id")
        .unique()
        .collect()["sample_id"]
    )
    assert len(paths_with(made, gone)) > 10
    done = purge(made, gone, "asked for")
    assert paths_with(made, gone) == []
    assert set(done.files) == {("a.jsonl", 3), ("b.jsonl", 0)}
    summary = run(Workspace.load(made.config_file))
    assert summary.tokens_measured == 0
    assert summary.read == 0
    without = {name: [r for r in own if r["prompt"] != "Count on from 3."] for name, own in shards.items()}
    other = make_workspace(tmp_path / "without", tiny_model, without, signals=SIGNALS, corpus=FILTERS)
    run(other)
    place = ["shard", "row"]
    for name in TABLES:
        mine, theirs = (read_stored(w, name).collect() for w in (made, other))
        drop = [column for column in place if column in mine.columns]
        keys = [
            column for column in ("sample_id", "step_index", "comparison", "left", "right") if column in mine.columns
        ]
        assert_frame_equal(
            mine.drop(drop).sort(keys), theirs.drop(drop).sort(keys), rel_tol=1e-5, abs_tol=1e-6, check_row_order=True
        )
    refused = read_stored(made, "rejected_rows").collect()
    assert refused.select("shard", "row", "candidate", "reason", "excerpt").rows() == [
        ("a.jsonl", 3, -1, "purged", ""),
        ("b.jsonl", 0, -1, "purged", ""),
    ]
    assert run(Workspace.load(made.config_file)).scored == {"tiny": 0}


def test_a_file_that_brings_it_again_is_rejected(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(5)})
    run(made)
    gone = read_stored(made, "raw_corpus").collect()["sample_id"][2]
    purge(made, gone)
    write_shard(tmp_path / "landing" / "again.jsonl", rows(5))
    plan = make_plan(made, probe=False)
    summary = run(made)
    assert summary.rejected == {"purged": 1}
    assert summary.tokens_measured == plan.targets[0].tokens == 0
    ingested = ingest_shard(made, "a.jsonl")
    assert ingested.account.balanced
    assert ingested.reasons == {"purged": 1}
    assert outdated_shards(made) == []


def test_purging_again_changes_nothing_and_finishes_what_was_killed(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(5)}, signals=SIGNALS)
    run(made)
    gone = read_stored(made, "raw_corpus").collect()["sample_id"][2]
    # Killed after the list was written, before anything else.
    add_purged(made.warehouse, gone, "first", ["a.jsonl"])
    purge(made, find_sample(made, gone[:8]), "second")
    assert paths_with(made, gone) == []
    before = {file.path: file.version for file in made.warehouse.files("") if "purged" not in file.path}
    assert purge(made, find_sample(made, gone)).tables == {}
    assert {file.path: file.version for file in made.warehouse.files("") if "purged" not in file.path} == before
    (entry,) = PurgedList.read(made.warehouse).samples.values()
    assert (entry.reason, list(entry.shards)) == ("first", ["a.jsonl"])
    assert run(made).tokens_measured == 0


def test_what_was_due_stays_due(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(5)})
    run(made)
    write_shard(tmp_path / "landing" / "a.jsonl", rows(7))
    purge(made, read_stored(made, "raw_corpus").collect()["sample_id"][0])
    assert outdated_shards(made) == ["a.jsonl"]
    run(made)
    assert len(read_stored(made, "sample_scores").collect()) == 6


def candidates(tmp_path: Path) -> Any:
    path = tmp_path / "c.jsonl"
    records = [
        {"prompt": "p", "a": "one two three", "b": "four five six"},
        {"prompt": "q", "a": "seven eight", "b": ""},
        {"prompt": "r", "a": "nine ten", "b": "eleven"},
    ]
    write_shard(path, records)
    corpus = Corpus.model_validate({"landing": ".", "columns": {"response": ["a", "b"]}})
    return read_shard(path, "c.jsonl", "c.jsonl", corpus)


@pytest.mark.parametrize("which", [[0], [1], [0, 1], [2], [2, 3], [0, 1, 2, 3, 4], []])
def test_every_row_and_candidate_stays_accounted_for(tmp_path: Path, which: list[int]) -> None:
    read = candidates(tmp_path)
    assert accounted(read).balanced
    ids = read.accepted["sample_id"].gather(which).to_list()
    kept = rows_without_purged(read, ids)
    assert accounted(kept).balanced
    assert kept.rows_in == read.rows_in
    assert set(read.accepted["sample_id"]) - set(kept.accepted["sample_id"]) == set(ids)
    touched = read.accepted.filter(pl.col("sample_id").is_in(ids))["row"].unique().to_list()
    assert set(kept.rejected.filter(pl.col("row").is_in(touched))["excerpt"]) <= {""}
    assert set(kept.rejected.filter(pl.col("reason") == "purged")["row"]) == set(touched)


def test_images_that_only_it_showed_go_and_do_not_come_back(tmp_path: Path, tiny_model: Path) -> None:
    images = [base64.b64encode(name).decode() for name in (b"shared", b"own")]
    first = {"prompt": "<image> <image> a", "response": "one", "images": [{"bytes": image} for image in images]}
    other = {"prompt": "<image> b", "response": "two", "images": [{"bytes": images[0]}]}
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": [first, other]})
    run(made)
    assert len(made.warehouse.files("images")) == 2
    gone = read_stored(made, "raw_corpus").filter(pl.col("row") == 0).collect()["sample_id"][0]
    assert len(purge(made, gone).images) == 1
    (left,) = made.warehouse.files("images")
    assert made.warehouse.storage.read(left.path) == b"shared"
    made.warehouse.storage.remove(f"{tables.raw_corpus_dir()}/a.jsonl.parquet")
    run(made)
    assert [file.path for file in made.warehouse.files("images")] == [left.path]


def test_releases_and_warm_ups_that_held_it_are_named_and_not_changed(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(6)}, warmup="{min_pool: 2, fraction: 1.0}")
    run(made)
    release = make_release(made, made.settings.subset("best"), 1, "run")
    gone = read_stored(made, "subset").collect()["sample_id"][0]
    kept = {file.path: file.version for folder in ("releases", "checkpoints") for file in made.warehouse.files(folder)}
    done = purge(made, gone)
    assert done.releases == {"best@1": release.folder}
    (checkpoint,) = done.checkpoints
    assert checkpoint.startswith("checkpoints/tiny/warmup/")
    assert kept == {
        file.path: file.version for folder in ("releases", "checkpoints") for file in made.warehouse.files(folder)
    }
    # What is current no longer holds it, so the release does not count as its content.
    assert "is not up to date" in CliRunner().invoke(app, ["release", "best", "-c", str(made.config_file)]).stderr
    run(made)
    assert make_release(made, made.settings.subset("best"), 2, "run").manifest["rows"] == 3


def test_a_validation_set_is_read_again_without_it(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(6)}, signals=("embeddings_position_weighted",))
    write_shard(tmp_path / "held.jsonl", rows(3))
    extra = (
        "validation: [{name: held, path: ./held.jsonl}]\n"
        "scores: [{name: near, target: tiny, method: rds_plus, validation: held}]\n"
    )
    made.config_file.write_text(made.config_file.read_text() + extra)
    made = Workspace.load(made.config_file)
    run(made)
    gone = read_stored(made, "raw_corpus").collect()["sample_id"][1]
    purge(made, gone)
    assert paths_with(made, gone) == []
    summary = run(made)
    assert (summary.tokens_measured, summary.scored) == (0, {"tiny": 1})
    assert len(made.warehouse.read_table(tables.validation_path("held"))) == 2


def test_ids_that_do_not_name_one_sample(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(3)}, signals=("likelihoods",))
    run(made)
    known = sorted(read_stored(made, "raw_corpus").collect()["sample_id"])
    assert find_sample(made, known[0][:8]) == known[0]
    with pytest.raises(PurgeError, match="first 8 characters"):
        find_sample(made, known[0][:7])
    with pytest.raises(PurgeError, match=f"nearest ids are .*{known[1]}"):
        find_sample(made, known[1][:-1] + "x")


def test_the_command_asks_and_tells(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(4)})
    run(made)
    gone = read_stored(made, "raw_corpus").collect()["sample_id"][0]
    words = ["purge", gone[:10], "--config", str(made.config_file)]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 1
    assert "pass --yes to confirm" in refused.stderr
    assert PurgedList.read(made.warehouse).samples == {}
    with open_instance(made) as instance:
        other = dg.DagsterRun(job_name="other", status=dg.DagsterRunStatus.STARTED)
        instance.add_run(other)
        assert "in progress" in CliRunner().invoke(app, [*words, "--yes"]).stderr
        instance.delete_run(other.run_id)
    shown = CliRunner().invoke(app, [*words, "--yes", "--reason", "licence"])
    assert shown.exit_code == 0, shown.output
    text = " ".join(shown.output.split())
    assert "file a.jsonl, row 0" in text
    assert "raw_corpus" in text
    document = json.loads(made.warehouse.storage.read(tables.purged_path()))
    assert document["samples"][0]["reason"] == "licence"


def test_a_damaged_list_lets_nothing_pass(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(2)})
    made.warehouse.storage.write(tables.purged_path(), b"{}")
    with pytest.raises(PurgedListError, match="Restore it from a backup"):
        run(made)
