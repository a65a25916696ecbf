"""The whole path with a warehouse in S3 (moto's server): the same tables as in a folder, and nothing done twice."""

from __future__ import annotations

import hashlib
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from curation_assets import tables
from curation_assets.cost.plan import make_plan
from curation_assets.releases.build import broken_files, make_release, read_release
from curation_assets.signals.store import signal_dir
from curation_assets.stored_tables import read_stored
from curation_assets.subsets.what_if import what_if
from curation_assets.workspace import Workspace
from resources.warehouse import WarehouseError
from tests.pipeline.workspaces import make_workspace, rows, run, write_shard

SHARDS = {"a.jsonl": [*rows(9), {"colour": "red"}], "deep/b c.jsonl": rows(6, start=7)}
SIGNALS = ("step_gradients", "likelihoods", "embeddings_mean")
WARMUP = "{min_pool: 5, fraction: 0.4}"


def in_s3(folder: Path, tiny_model: Path, bucket: str) -> Workspace:
    made = make_workspace(folder, tiny_model, SHARDS, warmup=WARMUP, signals=SIGNALS, part_seconds=0.0)
    made.config_file.write_text(made.config_file.read_text().replace("./warehouse", f"{bucket}/team/warehouse"))
    return Workspace.load(made.config_file)


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
    assert what_if(made, "best", ["alpha=0.1"]).selection.rows.height


def test_a_bucket_that_is_not_there_is_an_error_with_the_mend(tmp_path: Path, tiny_model: Path, bucket: str) -> None:
    with pytest.raises(WarehouseError, match="there is no such bucket: create it, or correct the address"):
        in_s3(tmp_path, tiny_model, f"{bucket}-x")
