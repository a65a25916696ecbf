"""The whole path with landing area and warehouse in S3 (moto's server): the same tables as in folders, and few
requests. `pytest --storage s3` has the other tests of this folder do the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from curation_assets import tables
from curation_assets.defs.dry_run import dry_run
from curation_assets.defs.main_job import MainJob
from curation_assets.operations.doctor import examine
from curation_assets.operations.init_config import InitError, write_config
from curation_assets.operations.plan import make_plan
from curation_assets.releases.build import broken_files, make_release, read_release
from curation_assets.signals.store import signal_dir
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.subsets.what_if import what_if
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.landing import LandingError
from curation_resources.storage.object_landing import ObjectLanding
from curation_resources.storage.warehouse import WarehouseError
from tests.pipeline.test_images import png, trace
from tests.pipeline.workspaces import arrive, instance_of, landed, make_workspace, rows, run, use_bucket, write_shard
from tests.s3 import Request, watched

SHARDS = {"a.jsonl": [*rows(9), {"colour": "red"}], "deep/b c.jsonl": rows(6, start=7)}
SIGNALS = ("step_gradients", "likelihoods", "embeddings_mean")
WARMUP = "{min_pool: 5, fraction: 0.4}"


def in_s3(folder: Path, tiny_model: Path, bucket: str) -> Workspace:
    made = make_workspace(folder, tiny_model, SHARDS, warmup=WARMUP, signals=SIGNALS, part_seconds=0.0)
    made.config_file.write_text(made.config_file.read_text().replace("./warehouse", f"{bucket}/team/warehouse"))
    return Workspace.load(made.config_file)


def landed_in_s3(folder: Path, model: Path, bucket: str, shards: dict[str, list[dict[str, Any]]]) -> Workspace:
    """A workspace with landing area and warehouse in a bucket."""
    use_bucket(bucket)
    try:
        return make_workspace(folder, model, shards)
    finally:
        use_bucket(None)


def test_tables_in_s3_are_those_in_a_folder(tmp_path: Path, tiny_model: Path, bucket: str) -> None:
    here = make_workspace(tmp_path / "here", tiny_model, SHARDS, warmup=WARMUP, signals=SIGNALS, part_seconds=0.0)
    there = in_s3(tmp_path / "there", tiny_model, bucket)
    plan = make_plan(there, probe=False)
    of_here, of_there = run(here), run(there)
    assert of_there == of_here
    assert of_there.tokens_measured == plan.targets[0].tokens > 0
    for name in ("raw_corpus", "rejected_rows", "segmented_steps", "score_manifest"):
        assert_frame_equal(read_stored(there, name).collect(), read_stored(here, name).collect())
    for name in (*SIGNALS, "step_scores", "sample_scores"):
        assert_frame_equal(
            read_stored(there, name).collect(), read_stored(here, name).collect(), rel_tol=1e-5, abs_tol=1e-6
        )
    assert read_stored(there, "subset").collect()["sample_id"].to_list() == (
        read_stored(here, "subset").collect()["sample_id"].to_list()
    )
    assert not list((tmp_path / "there").rglob("*.parquet"))


def test_a_second_run_measures_nothing_and_a_new_file_only_itself(
    tmp_path: Path, tiny_model: Path, bucket: str
) -> None:
    made = in_s3(tmp_path, tiny_model, bucket)
    run(made)
    summary = run(Workspace.load(made.config_file))
    assert (summary.tokens_measured, summary.scored, summary.subsets) == (0, {"tiny": 0}, [])
    write_shard(tmp_path / "landing" / "c.jsonl", rows(2, start=50))
    assert run(made).measured == {"tiny": 2}


def test_a_release_in_s3_is_whole_checked_and_made_once(tmp_path: Path, tiny_model: Path, bucket: str) -> None:
    made = in_s3(tmp_path, tiny_model, bucket)
    run(made)
    subset = made.settings.subset("best")
    release = make_release(made, subset, 1, "run")
    assert release.folder == f"{bucket}/team/warehouse/{tables.release_dir('best')}/1"
    assert make_release(made, subset, 1, "another run").manifest == release.manifest
    storage = made.warehouse.storage
    names = {
        file.path.removeprefix(f"{tables.release_dir('best')}/1/") for file in storage.walk(tables.release_dir("best"))
    }
    assert {"data/train.parquet", "data/train.jsonl", "manifest.json", "SHA256SUMS", "provenance.json"} < names
    assert made.warehouse.read_text(f"{tables.release_dir('best')}/LATEST") == "1"
    local = made.warehouse.local(f"{tables.release_dir('best')}/1")
    assert pl.read_parquet(local / "data" / "train.parquet").height == release.manifest["rows"]
    for line in (local / "SHA256SUMS").read_text().splitlines():
        expected, name = line.split("  ")
        assert hashlib.sha256((local / name).read_bytes()).hexdigest() == expected
    storage.write(f"{tables.release_dir('best')}/1/data/train.jsonl", b"{}")
    assert broken_files(made, read_release(made, subset, 1)) == ["data/train.jsonl"]


def test_a_part_that_is_lost_in_s3_is_measured_again(tmp_path: Path, tiny_model: Path, bucket: str) -> None:
    made = in_s3(tmp_path, tiny_model, bucket)
    tokens = run(made).tokens_measured
    folder = signal_dir(made, made.settings.targets[0], "likelihoods")
    parts = [file for file in made.warehouse.files(str(folder)) if file.name.endswith(".parquet")]
    made.warehouse.storage.remove(parts[0].path)
    assert 0 < run(Workspace.load(made.config_file)).tokens_measured <= tokens


def test_a_what_if_reads_s3(tmp_path: Path, tiny_model: Path, bucket: str) -> None:
    made = in_s3(tmp_path, tiny_model, bucket)
    run(made)
    assert what_if(made, "best").difference()["overlap_jaccard"] == 1.0
    assert what_if(made, "best", ["alpha=0.1"]).rows.height


def test_a_bucket_that_is_not_there_is_an_error_with_the_mend(tmp_path: Path, tiny_model: Path, bucket: str) -> None:
    with pytest.raises(WarehouseError, match="there is no such bucket: create it, or correct the address"):
        in_s3(tmp_path, tiny_model, f"{bucket}-x")


def test_samples_that_land_in_s3_are_those_that_land_in_a_folder(tmp_path: Path, tiny_model: Path, bucket: str) -> None:
    shards = {"a.jsonl": rows(4), "sub/b.jsonl": [trace("img/x.png"), trace("../x.png"), trace("no.png"), *rows(1, 50)]}
    here = make_workspace(tmp_path / "here", tiny_model, shards)
    there = landed_in_s3(tmp_path / "there", tiny_model, bucket, shards)
    for workspace in (here, there):
        for name in ("sub/img/x.png", "x.png"):
            image = landed(workspace) / name
            image.parent.mkdir(exist_ok=True)
            image.write_bytes(png((200, 0, 0)))
    arrive(there)
    assert run(there) == run(here)
    for name in ("raw_corpus", "rejected_rows", "sample_scores"):
        assert_frame_equal(read_stored(there, name).collect(), read_stored(here, name).collect(), abs_tol=1e-6)
    reasons = read_stored(there, "rejected_rows").collect()["reason"].to_list()
    assert sorted(reasons) == ["image_missing", "image_outside_folder"]
    assert isinstance(there.landing, ObjectLanding)
    assert not list((tmp_path / "cache").rglob("files/x.png"))


@pytest.fixture
def asked() -> Iterator[list[Request]]:
    """The requests that S3 receives from now on."""
    with watched() as seen:
        yield seen


def test_a_second_run_asks_s3_for_nothing_twice(
    tmp_path: Path, tiny_model: Path, bucket: str, asked: list[Request]
) -> None:
    shards = {f"{n}.jsonl": rows(2, start=20 * n) for n in range(5)}
    made = landed_in_s3(tmp_path, tiny_model, bucket, shards)
    run(made)
    asked.clear()
    again = Workspace.load(made.config_file)
    assert MainJob(again, instance_of(again)).run().tokens_measured == 0
    # The manifest's footer and its rows are two ranges of one file.
    assert len(asked) - len({request.question.partition(" ")[0] for request in asked}) <= 1
    # Six small files of each shard (rows, rejected rows, steps, measurement, scores, step scores), and some listings
    # and documents.
    assert len(asked) <= 6 * 5 + 24
    # A process that stays, as the daemon's code server does, asks for what has changed: nothing of any shard.
    asked.clear()
    assert MainJob(again, instance_of(again)).run().tokens_measured == 0
    assert len(asked) <= 5 + 24


def test_looks_before_a_run_work_on_s3(tmp_path: Path, tiny_model: Path, bucket: str) -> None:
    made = landed_in_s3(tmp_path, tiny_model, bucket, {"a.jsonl": rows(6), "b.jsonl": rows(6, start=30)})
    plan = make_plan(made, probe=False)
    with dry_run(made, 4) as look:
        assert look.summary.measured == {"tiny": 4}
        assert 0 < look.share < 1
    assert run(made).tokens_measured == plan.targets[0].tokens
    found = {finding.what: finding for finding in examine(made.config_file)}
    assert found["landing area"].ok
    assert "2 shards" in found["landing area"].found
    assert made.landing.place in found["landing area"].found
    made.config_file.write_text(made.config_file.read_text().replace(f"landing: {bucket}", f"landing: {bucket}-x"))
    found = {finding.what: finding for finding in examine(made.config_file)}
    assert not found["landing area"].ok
    assert "there is no such bucket: create it" in found["landing area"].found


def test_init_looks_at_folders_only(tmp_path: Path) -> None:
    with pytest.raises(InitError, match=r"set corpus\.landing in .* to the bucket's address"):
        write_config(Path("s3://bucket/traces"), "model", tmp_path / "curation.yaml")


def test_a_warehouse_inside_the_landing_area_is_refused(tmp_path: Path, tiny_model: Path, bucket: str) -> None:
    made = landed_in_s3(tmp_path, tiny_model, bucket, {})
    text = made.config_file.read_text()
    made.config_file.write_text(text.replace(f"landing: {made.landing.place}", f"landing: {bucket}/"))
    with pytest.raises(LandingError, match=r"would be read as shards\. Use another prefix"):
        run(Workspace.load(made.config_file))
