"""Sensors and automation conditions, evaluated as the daemon does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest
from dagster._core.storage.tags import AUTOMATION_CONDITION_TAG

from curation_assets.definitions import build_definitions
from curation_assets.defs import sensors
from curation_assets.defs.corpus import RAW_CORPUS_KEY
from curation_assets.defs.partitions import SHARDS
from curation_assets.defs.reports import COMPARISON_KEY
from curation_assets.defs.sensors import scoring_requests
from curation_assets.defs.subsets import AUTOMATION_TAG
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.landing import LandingError
from tests.models import write_tiny_model, write_tiny_qwen3_vl
from tests.pipeline.daemon import Daemon
from tests.pipeline.workspaces import landed, lose, make_workspace, rows, stored, write_config, write_shard

GRADIENTS = dg.AssetKey(["tiny", "step_gradients"])
SAMPLE_SCORES = dg.AssetKey(["tiny", "sample_scores"])
MANIFEST = dg.AssetKey(["tiny", "score_manifest"])
SUBSET = dg.AssetKey(["subsets", "best"])


@pytest.fixture
def daemon(tmp_path: Path, tiny_model: Path) -> Iterator[Daemon]:
    shards = {"a.jsonl": rows(4), "b.jsonl": rows(4, start=50), "c.jsonl": rows(4, start=90)}
    workspace = make_workspace(tmp_path, tiny_model, shards)
    with dg.DagsterInstance.ephemeral() as instance:
        yield Daemon(workspace, instance)


def partitions(daemon: Daemon, key: dg.AssetKey) -> set[str]:
    return set(daemon.instance.get_materialized_partitions(key))


@pytest.mark.folder_only("an object appears whole: it is taken at the first look")
def test_a_file_is_taken_at_the_second_look_that_is_like_the_first(daemon: Daemon) -> None:
    daemon.tick("landing")
    assert daemon.instance.get_dynamic_partitions(str(SHARDS.name)) == []
    path = landed(daemon.workspace) / "b.jsonl"
    with path.open("a") as stream:
        stream.write('{"prompt": "p", "response": "half a')
    daemon.tick("landing")
    assert set(daemon.instance.get_dynamic_partitions(str(SHARDS.name))) == {"a.jsonl", "c.jsonl"}
    daemon.tick("landing")
    assert "b.jsonl" in daemon.instance.get_dynamic_partitions(str(SHARDS.name))


def test_new_files_are_read_and_measured_in_one_run(daemon: Daemon) -> None:
    assert daemon.settle() == ["raw_corpus+rejected_rows+segmented_steps+tiny/step_gradients"]
    assert partitions(daemon, GRADIENTS) == {"a.jsonl", "b.jsonl", "c.jsonl"}
    assert daemon.settle() == []


def test_a_new_file_is_the_only_one_asked_for(daemon: Daemon) -> None:
    daemon.settle()
    write_shard(landed(daemon.workspace) / "d.jsonl", rows(2, start=200))
    daemon.tick("landing")
    daemon.tick("landing")
    (request,) = daemon.scoring()
    assert request.tags["dagster/asset_partition_range_start"] == "d.jsonl"
    assert request.tags["dagster/asset_partition_range_end"] == "d.jsonl"


def test_scattered_changes_are_contiguous_ranges(daemon: Daemon) -> None:
    daemon.settle()
    for name, start in (("a.jsonl", 300), ("c.jsonl", 400)):
        write_shard(landed(daemon.workspace) / name, rows(3, start=start))
    daemon.tick("landing")
    daemon.tick("landing")
    starts = [request.tags["dagster/asset_partition_range_start"] for request in daemon.scoring()]
    assert starts == ["a.jsonl", "c.jsonl"]


def test_a_failure_does_not_loop_and_a_change_asks_again(daemon: Daemon, tiny_model: Path, tmp_path: Path) -> None:
    daemon.settle()
    other = write_tiny_model(tmp_path / "other", seed=3)
    daemon.workspace = Workspace.load(write_config(daemon.workspace.folder, other))
    daemon.defs = build_definitions(daemon.workspace)
    (first,) = daemon.scoring()
    assert [key.to_user_string() for key in first.asset_selection or []] == ["tiny/step_gradients"]
    assert daemon.scoring() == []  # not run, so the state is the same: asked for once
    # A -> B -> A: the first model is measured already, so only B was ever due.
    daemon.workspace = Workspace.load(write_config(daemon.workspace.folder, tiny_model))
    daemon.defs = build_definitions(daemon.workspace)
    assert daemon.scoring() == []


def test_a_run_that_is_killed_before_it_stored_anything_is_asked_for_again(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.tick("landing")
    daemon.tick("landing")
    for _ in range(2):
        (request,) = daemon.scoring()
        # As the daemon launches it; then its machine goes.
        job = daemon.defs.resolve_implicit_global_asset_job_def()
        selection = set(request.asset_selection or ())
        run = daemon.instance.create_run_for_job(job, tags=dict(request.tags), asset_selection=selection)
        assert daemon.scoring() == []
        daemon.instance.report_run_failed(run)
        assert daemon.scoring() == []
        # After a while; the pauses grow (tests/pipeline/test_asked_again.py).
        monkeypatch.setattr(sensors, "time", SimpleNamespace(time=lambda: time.time() + 60))


def test_a_signal_that_is_added_is_asked_for_alone(daemon: Daemon, tiny_model: Path) -> None:
    daemon.settle()
    config = write_config(daemon.workspace.folder, tiny_model, signals=("step_gradients", "likelihoods"))
    daemon.workspace = Workspace.load(config)
    daemon.defs = build_definitions(daemon.workspace)
    # A failure of the new one must not turn those red that are there.
    assert daemon.settle() == ["tiny/likelihoods"]
    assert partitions(daemon, dg.AssetKey(["tiny", "likelihoods"])) == {"a.jsonl", "b.jsonl", "c.jsonl"}


def test_limits_on_images_may_go_back_and_forth(tmp_path: Path, tiny_model: Path) -> None:
    model = write_tiny_qwen3_vl(tmp_path / "model")
    workspace = make_workspace(tmp_path / "w", model, {"a.jsonl": rows(2)})
    with dg.DagsterInstance.ephemeral() as instance:
        daemon = Daemon(workspace, instance)
        daemon.settle()
        for limit in (100, 200, 100, 200):
            corpus = f"images: {{max_pixels: {limit}}}"
            daemon.workspace = Workspace.load(write_config(workspace.folder, model, corpus=corpus))
            daemon.defs = build_definitions(daemon.workspace)
            assert daemon.settle() == ["tiny/step_gradients"]


def test_a_missing_event_is_asked_for_again_and_measures_nothing(daemon: Daemon) -> None:
    daemon.settle()
    with dg.DagsterInstance.ephemeral() as fresh:
        fresh.add_dynamic_partitions(str(SHARDS.name), ["a.jsonl", "b.jsonl", "c.jsonl"])
        requests, _ = scoring_requests(daemon.workspace, fresh, 0.0)
        assert RAW_CORPUS_KEY in (requests[0].asset_selection or [])
        daemon.instance = fresh
        daemon.settle()
    paths = stored(daemon.workspace, "signals/tiny/base/step_gradients", "*.jsonl.json")
    records = [daemon.workspace.warehouse.read_json(path) for path in paths]
    assert [record["tokens_run"] for record in records] == [0, 0, 0]


def test_a_deleted_table_is_made_again(daemon: Daemon) -> None:
    daemon.settle()
    lose(daemon.workspace, "corpus/raw_corpus/b.jsonl.parquet")
    (request,) = daemon.scoring()
    assert request.tags["dagster/asset_partition_range_start"] == "b.jsonl"


def test_the_warm_up_waits_and_says_so(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path / "w", tiny_model, {"a.jsonl": rows(4)}, warmup="{min_pool: 50}")
    with dg.DagsterInstance.ephemeral() as instance:
        daemon = Daemon(workspace, instance)
        assert daemon.settle() == ["raw_corpus+rejected_rows+segmented_steps"]
        skipped = daemon.tick("scoring")
        assert isinstance(skipped, dg.SkipReason)
        assert "its warm-up needs 50" in str(skipped.skip_message)


def test_conditions_carry_signals_on_to_the_subset(daemon: Daemon) -> None:
    assert daemon.conditions() == set()  # the first evaluation is the initial one
    daemon.settle()
    asked = daemon.conditions()
    assert {key for key, _ in asked} == {"tiny/sample_scores", "tiny/step_scores"}
    assert {partition for _, partition in asked} == {"a.jsonl", "b.jsonl", "c.jsonl"}
    for shard in ("a.jsonl", "b.jsonl", "c.jsonl"):
        daemon.materialize(dg.AssetKey(["tiny", "step_scores"]), SAMPLE_SCORES, partition=shard)
    assert daemon.conditions() == set()
    (manifest,) = daemon.scoring()
    assert list(manifest.asset_selection or []) == [MANIFEST]
    assert daemon.run(manifest).success
    assert daemon.conditions() == {("subsets/best", None), ("reports/subset_comparison", None)}
    daemon.materialize(SUBSET, COMPARISON_KEY)
    daemon.conditions()
    assert daemon.conditions() == set()


def test_a_shard_that_changes_before_the_subset_is_selected_is_no_failure(daemon: Daemon) -> None:
    daemon.conditions()  # the first evaluation is the initial one
    daemon.carry_through()
    stored = daemon.workspace.warehouse.table_metadata("subsets/best.parquet")
    write_shard(landed(daemon.workspace) / "a.jsonl", rows(3, start=300))
    daemon.settle()  # read and measured, not scored yet
    assert AUTOMATION_TAG == AUTOMATION_CONDITION_TAG  # as the daemon tags its runs
    request = dg.RunRequest(asset_selection=[SUBSET, COMPARISON_KEY])
    assert not daemon.run(request).success
    ran = daemon.run(request.with_replaced_attrs(tags={AUTOMATION_TAG: "true"}))
    assert ran.success
    assert not ran.get_asset_materialization_events()
    assert daemon.workspace.warehouse.table_metadata("subsets/best.parquet") == stored
    assert "reports/subset_comparison+subsets/best" in daemon.carry_through()
    assert daemon.workspace.warehouse.table_metadata("subsets/best.parquet") != stored


def test_a_check_of_the_subset_can_be_run_alone(daemon: Daemon) -> None:
    daemon.conditions()  # the first evaluation is the initial one
    daemon.carry_through()
    check = dg.AssetCheckKey(SUBSET, "budget_filled")
    job = daemon.defs.resolve_implicit_global_asset_job_def()
    subset = job.get_subset(asset_selection=set(), asset_check_selection={check})
    ran = subset.execute_in_process(instance=daemon.instance)
    assert [result.asset_check_key for result in ran.get_asset_check_evaluations()] == [check]
    assert not ran.get_asset_materialization_events()


def test_another_budget_asks_for_the_subset_alone(daemon: Daemon, tiny_model: Path) -> None:
    daemon.settle()
    for shard in ("a.jsonl", "b.jsonl", "c.jsonl"):
        daemon.materialize(dg.AssetKey(["tiny", "step_scores"]), SAMPLE_SCORES, partition=shard)
    daemon.materialize(MANIFEST)
    daemon.materialize(SUBSET, COMPARISON_KEY)
    daemon.conditions()
    daemon.conditions()
    config = daemon.workspace.config_file
    config.write_text(config.read_text().replace("fraction: 0.5", "fraction: 0.25"))
    daemon.workspace = Workspace.load(config)
    daemon.defs = build_definitions(daemon.workspace)
    assert daemon.conditions() == {("subsets/best", None), ("reports/subset_comparison", None)}


def test_a_removed_file_asks_for_the_manifest(daemon: Daemon) -> None:
    for number in range(4):
        write_shard(landed(daemon.workspace) / f"more{number}.jsonl", rows(1, start=500 + 10 * number))
    daemon.settle()
    for shard in daemon.instance.get_dynamic_partitions(str(SHARDS.name)):
        daemon.materialize(dg.AssetKey(["tiny", "step_scores"]), SAMPLE_SCORES, partition=shard)
    daemon.settle()
    assert daemon.scoring() == []
    (landed(daemon.workspace) / "more1.jsonl").unlink()
    daemon.tick("landing")
    (request,) = daemon.scoring()
    assert list(request.asset_selection or []) == [MANIFEST]


def test_a_listing_that_lost_too_much_is_refused(daemon: Daemon) -> None:
    daemon.settle()
    for path in landed(daemon.workspace).glob("*.jsonl"):
        path.unlink()
    with pytest.raises(LandingError, match="3 of 3 files are gone"):
        daemon.tick("landing")


def test_a_model_that_is_not_there_is_a_reason_and_files_are_still_taken(daemon: Daemon, tmp_path: Path) -> None:
    daemon.workspace = Workspace.load(write_config(daemon.workspace.folder, tmp_path / "nowhere"))
    daemon.defs = build_definitions(daemon.workspace)
    assert daemon.settle() == ["raw_corpus+rejected_rows+segmented_steps"]
    skipped = daemon.tick("scoring")
    assert isinstance(skipped, dg.SkipReason)
    assert "nowhere" in str(skipped.skip_message)


def test_a_missing_event_of_any_corpus_asset_is_asked_for(daemon: Daemon) -> None:
    daemon.settle()
    with dg.DagsterInstance.ephemeral() as other:
        other.add_dynamic_partitions(str(SHARDS.name), ["a.jsonl", "b.jsonl", "c.jsonl"])
        for key in (RAW_CORPUS_KEY, dg.AssetKey("rejected_rows"), GRADIENTS):
            for shard in ("a.jsonl", "b.jsonl", "c.jsonl"):
                other.report_runless_asset_event(dg.AssetMaterialization(key, partition=shard))
        (request,), _ = scoring_requests(daemon.workspace, other, 0.0)
        assert RAW_CORPUS_KEY in (request.asset_selection or [])
