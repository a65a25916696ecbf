"""What changes upstream costs what it must and no more: sensors and conditions, ticked until they rest."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from curation_assets.definitions import build_definitions
from curation_assets.defs import sensors
from curation_assets.defs.alerts import RETRIED_TAG, alert_sensors, failure_alert
from curation_assets.defs.corpus import RAW_CORPUS_KEY
from curation_assets.defs.sensors import PATIENCE_SECONDS, rescue_requests
from curation_assets.tables import score_manifest_path
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.landing import LandingError
from tests.models import write_tiny_model
from tests.pipeline.daemon import Daemon
from tests.pipeline.workspaces import landed, lose, make_workspace, rows, stored, subset_ids, write_config, write_shard

SIGNALS = {"tiny/step_gradients", "other/step_gradients"}
SHARDS = {f"{name}.jsonl": rows(4, start=50 * number) for number, name in enumerate("abcdef")}


@pytest.fixture
def daemon(tmp_path: Path, tiny_model: Path) -> Iterator[Daemon]:
    """Six shards, carried through to the subset."""
    workspace = make_workspace(tmp_path, tiny_model, SHARDS)
    with dg.DagsterInstance.ephemeral() as instance:
        ticking = Daemon(workspace, instance)
        ticking.conditions()  # the first evaluation is the initial one
        ticking.carry_through()
        yield ticking


def record(daemon: Daemon, shard: str) -> dict[str, Any]:
    """The record of the last visit to a shard."""
    (path,) = stored(daemon.workspace, "signals/tiny/base/step_gradients", f"{shard}.json")
    found = daemon.workspace.warehouse.read_json(path)
    assert found is not None
    return dict(found)


def measured(runs: list[str]) -> set[str]:
    """Signals that any of the runs measured."""
    return made(runs) & SIGNALS


def made(runs: list[str]) -> set[str]:
    """Assets of the runs."""
    return {asset for run in runs for asset in run.split("+")}


def test_everything_is_carried_through_and_comes_to_rest(daemon: Daemon) -> None:
    assert len(subset_ids(daemon.workspace)) == 12
    assert daemon.carry_through() == []


def test_of_a_changed_file_only_the_changed_rows_are_measured(daemon: Daemon) -> None:
    before = {shard: record(daemon, shard) for shard in SHARDS}
    changed = [*SHARDS["b.jsonl"][:3], *rows(1, start=900)]
    write_shard(landed(daemon.workspace) / "b.jsonl", changed)
    runs = daemon.carry_through()
    after = {shard: record(daemon, shard) for shard in SHARDS}
    assert [shard for shard in SHARDS if after[shard] != before[shard]] == ["b.jsonl"]
    assert (after["b.jsonl"]["measured"], after["b.jsonl"]["skipped"]) == (1, 3)
    assert "subsets/best" in made(runs)


def test_a_removed_file_leaves_subset_and_manifest_and_comes_back_for_nothing(daemon: Daemon) -> None:
    path = landed(daemon.workspace) / "c.jsonl"
    content, before = path.read_text(), record(daemon, "c.jsonl")
    path.unlink()
    runs = daemon.carry_through()
    assert measured(runs) == set()
    manifest = daemon.workspace.warehouse.read_table(score_manifest_path("tiny"))
    assert dict(manifest.select("shard", "present").iter_rows()) == {shard: shard != "c.jsonl" for shard in SHARDS}
    gone = set(daemon.workspace.warehouse.read_table("corpus/raw_corpus/c.jsonl.parquet")["sample_id"])
    assert len(subset_ids(daemon.workspace)) == 10
    assert not gone & set(subset_ids(daemon.workspace))
    write_shard(path, [json.loads(line) for line in content.splitlines()])
    assert measured(daemon.carry_through()) == set()
    assert record(daemon, "c.jsonl") == before
    assert len(subset_ids(daemon.workspace)) == 12


def test_a_changed_checkpoint_measures_its_target_alone(daemon: Daemon, tmp_path: Path, tiny_model: Path) -> None:
    other = write_tiny_model(tmp_path / "other", seed=3)
    config = daemon.workspace.config_file
    target = f"  - {{name: other, model: {other}, warmup: none, signals: [step_gradients]}}\nscores:"
    config.write_text(config.read_text().replace("scores:", target, 1))
    daemon.reload()
    daemon.carry_through()
    before = record(daemon, "a.jsonl")
    write_tiny_model(tmp_path / "other", seed=4)
    assert measured(daemon.carry_through()) == {"other/step_gradients"}
    assert record(daemon, "a.jsonl") == before


@pytest.mark.parametrize(("key", "value"), [("alpha: 0.7", "alpha: 0.2"), ("fraction: 0.5", "fraction: 0.25")])
def test_another_parameter_or_budget_measures_nothing(daemon: Daemon, key: str, value: str) -> None:
    config = daemon.workspace.config_file
    config.write_text(config.read_text().replace(key, value))
    daemon.reload()
    runs = daemon.carry_through()
    assert measured(runs) == set()
    assert "subsets/best" in made(runs)


def test_of_a_killed_range_what_lacks_is_asked_for_and_nothing_is_measured_twice(daemon: Daemon) -> None:
    # As a run leaves it that is killed between shards: measured rows without records, tables without events.
    shards = list(SHARDS)
    lose(daemon.workspace, *stored(daemon.workspace, "signals/tiny/base/step_gradients/", "[ef].jsonl.json"))
    with dg.DagsterInstance.ephemeral() as fresh:
        fresh.add_dynamic_partitions("shards", shards)
        keys = [RAW_CORPUS_KEY, dg.AssetKey("rejected_rows"), dg.AssetKey("segmented_steps")]
        for key in keys:
            for shard in shards:
                fresh.report_runless_asset_event(dg.AssetMaterialization(key, partition=shard))
        for shard in ("a.jsonl", "b.jsonl", "c.jsonl"):
            key = dg.AssetKey(["tiny", "step_gradients"])
            fresh.report_runless_asset_event(dg.AssetMaterialization(key, partition=shard))
        daemon.instance = fresh
        (request,) = daemon.scoring()
        ends = [request.tags[f"dagster/asset_partition_range_{end}"] for end in ("start", "end")]
        assert ends == ["d.jsonl", "f.jsonl"]
        assert daemon.run(request).success
    assert [record(daemon, shard)["measured"] for shard in ("d.jsonl", "e.jsonl", "f.jsonl")] == [0, 0, 0]


LOSSES = {
    "scores/tiny/step_scores/grace/b.jsonl.parquet": "tiny/step_scores+tiny/sample_scores",
    "scores/tiny/sample_scores/b.jsonl.parquet": "tiny/step_scores+tiny/sample_scores",
    "subsets/best.parquet": "subsets/best",
    "reports/subset_comparison.parquet": "reports/subset_comparison",
}


@pytest.mark.parametrize("path", LOSSES)
def test_what_no_condition_asks_for_is_asked_for_after_a_while(daemon: Daemon, path: str) -> None:
    # As a killed run leaves it, too: a condition that has asked once does not ask again.
    lose(daemon.workspace, path)
    assert daemon.carry_through() == []
    early, waiting = rescue_requests(daemon.workspace, daemon.instance, {}, now=1000.0)
    assert (early, len(waiting)) == ([], 1)
    late, _ = rescue_requests(daemon.workspace, daemon.instance, waiting, now=1000.0 + PATIENCE_SECONDS)
    (request,) = late
    assert "+".join(key.to_user_string() for key in request.asset_selection or []) == LOSSES[path]
    assert daemon.run(request).success
    assert daemon.workspace.warehouse.storage.exists(path)
    daemon.carry_through()
    assert rescue_requests(daemon.workspace, daemon.instance, waiting, now=5000.0) == ([], {})


def test_the_scoring_sensor_does_that(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    lose(daemon.workspace, "subsets/best.parquet")
    assert daemon.scoring() == []
    monkeypatch.setattr(sensors, "PATIENCE_SECONDS", 0.0)
    assert [list(request.asset_selection or []) for request in daemon.scoring()] == [[dg.AssetKey(["subsets", "best"])]]
    assert daemon.scoring() == []  # not run, and asked for once a day


def test_rejected_rows_that_are_gone_are_read_again(daemon: Daemon) -> None:
    lose(daemon.workspace, "corpus/rejected_rows/b.jsonl.parquet")
    assert made(daemon.carry_through()) >= {"rejected_rows"}
    assert daemon.workspace.warehouse.storage.exists("corpus/rejected_rows/b.jsonl.parquet")


# Alerts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def told(daemon: Daemon, tmp_path: Path) -> Path:
    """A file with a line for every alert of the daemon's configuration."""
    path = tmp_path / "alerts.jsonl"
    script = f"import sys; open({str(path)!r}, 'a').write(sys.stdin.read() + chr(10))"
    config = daemon.workspace.config_file
    config.write_text(config.read_text() + f"alerts: {{command: [{sys.executable}, -c, {json.dumps(script)}]}}\n")
    daemon.reload()
    return path


def alerts(told: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []


def tell_of(daemon: Daemon, result: dg.ExecuteInProcessResult) -> None:
    """Evaluate the run-failure sensor on a failed run."""
    (sensor,) = alert_sensors(daemon.workspace)
    event = result.get_run_failure_event()
    context = dg.build_run_status_sensor_context(
        sensor_name="alerts",
        dagster_event=event,
        dagster_instance=daemon.instance,
        dagster_run=result.dagster_run,
        resources={"workspace": daemon.workspace},
    ).for_run_failure()
    sensor(context)


def failing_run(daemon: Daemon, **tags: str) -> dg.ExecuteInProcessResult:
    """A run that cannot write the table of a new file."""
    write_shard(landed(daemon.workspace) / "new.jsonl", rows(2, start=700))
    daemon.tick("landing")
    daemon.tick("landing")
    (request,) = daemon.scoring()
    (daemon.workspace.folder / "warehouse/steps/segmented_steps/new.jsonl.parquet").mkdir(parents=True)
    return daemon.run(dg.RunRequest(asset_selection=request.asset_selection, tags={**request.tags, **tags}))


@pytest.mark.folder_only("a folder stands where a file has to be written")
def test_a_failed_run_is_told_of_with_its_cause(daemon: Daemon, told: Path) -> None:
    failed = failing_run(daemon)
    assert not failed.success
    tell_of(daemon, failed)
    (alert,) = alerts(told)
    assert alert["event"] == "run_failed"
    assert alert["run_id"] == failed.run_id
    assert alert["partitions"] == ["new.jsonl", "new.jsonl"]
    assert "segmented_steps" in alert["assets"]
    assert "new.jsonl" in alert["error"]
    assert alert["text"].startswith(f"curation: run {failed.run_id[:8]} (corpus) failed: ")


@pytest.mark.folder_only("a folder stands where a file has to be written")
def test_a_run_that_is_tried_again_is_not_told_of(daemon: Daemon, told: Path) -> None:
    tell_of(daemon, failing_run(daemon, **{RETRIED_TAG: "true"}))
    assert alerts(told) == []


def test_a_refused_listing_is_told_of_once_and_again_after_it_was_mended(daemon: Daemon, told: Path) -> None:
    lost = [landed(daemon.workspace) / name for name in LOST]
    for _ in range(2):
        contents = [path.read_text() for path in lost]
        for path in lost:
            path.unlink()
        for sensor in ("landing", "scoring", "landing"):
            with pytest.raises(LandingError, match="5 of 6 files are gone"):
                daemon.tick(sensor)
        for path, content in zip(lost, contents, strict=True):
            write_shard(path, [json.loads(line) for line in content.splitlines()])
        daemon.carry_through()
    first, second = alerts(told)
    assert first["event"] == second["event"] == "landing_refused"
    assert "5 of 6 files are gone" in first["text"]


LOST = ("a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl", "e.jsonl")


def test_a_channel_that_fails_is_tried_once_and_hides_nothing(
    daemon: Daemon, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    count = tmp_path / "tries"
    script = f"open({str(count)!r}, 'a').write('x'); raise SystemExit(3)"
    config = daemon.workspace.config_file
    config.write_text(config.read_text() + f"alerts: {{command: [{sys.executable}, -c, {json.dumps(script)}]}}\n")
    daemon.reload()
    for name in LOST:
        (landed(daemon.workspace) / name).unlink()
    for lost in (5, 6):
        for _ in range(2):
            with pytest.raises(LandingError, match=f"{lost} of 6 files are gone"):
                daemon.tick("landing")
        (landed(daemon.workspace) / "f.jsonl").unlink(missing_ok=True)
    assert count.read_text() == "x"
    assert "the alert that sensor landing cannot continue was not delivered" in caplog.text


def test_an_alert_is_short_whatever_failed() -> None:
    run = dg.DagsterRun(job_name="x", run_id="12345678-aaaa")
    alert = failure_alert(run, "e" * 100_000, "curation.yaml")
    assert len(alert.document()) < 4000


def test_nobody_is_told_where_nobody_is_named(daemon: Daemon) -> None:
    assert alert_sensors(daemon.workspace) == []


# Freshness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["", "freshness: {fail_hours: 48, warn_hours: 24}\n"])
def test_subsets_and_manifests_have_the_freshness_that_is_asked_for(
    tmp_path: Path, tiny_model: Path, section: str
) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(1)})
    workspace.config_file.write_text(write_config(workspace.folder, tiny_model).read_text() + section)
    defs = build_definitions(Workspace.load(workspace.config_file))
    policies = {node.key.to_user_string(): node.freshness_policy for node in defs.resolve_asset_graph().asset_nodes}
    wanted = {"subsets/best", "tiny/score_manifest"} if section else set()
    assert {key for key, policy in policies.items() if policy is not None} == wanted
    for key in wanted:
        assert policies[key] == dg.FreshnessPolicy.time_window(timedelta(hours=48), timedelta(hours=24))
