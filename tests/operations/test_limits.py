"""Limits of a run: measuring stops at them, nothing is lost, and the rest comes out as if there were none."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from polars.testing import assert_frame_equal
from rich.console import Console
from typer.testing import CliRunner

from curation_assets import tables
from curation_assets.cli.app import app
from curation_assets.cli.run_summary import show_summary
from curation_assets.cli.show_cost import limit_lines
from curation_assets.config.running_settings import Limits
from curation_assets.defs.sensors import scoring_requests
from curation_assets.operations.plan import make_plan
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.limits import HOUR, Allowance, DayAllowance, Spent, spent_today, waits_for_tomorrow
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.warehouse import Warehouse
from tests.pipeline.daemon import Daemon
from tests.pipeline.test_automation import GRADIENTS, MANIFEST, SAMPLE_SCORES, SUBSET
from tests.pipeline.workspaces import instance_of, make_workspace, rows, run, signal_rows, subset_ids, write_shard

SHARDS = {"a.jsonl": rows(8), "b.jsonl": rows(6, start=30), "c.jsonl": rows(3, start=60)}
BATCH = 200
SIGNALS = ("step_gradients", "likelihoods")


def limited(folder: Path, model: Path, limits: str, signals: tuple[str, ...] = SIGNALS) -> Workspace:
    made = make_workspace(folder, model, SHARDS, signals=signals, batch_tokens=BATCH, part_seconds=0.0)
    made.config_file.write_text(f"{made.config_file.read_text()}limits: {limits}\n")
    return Workspace.load(made.config_file)


def assert_equal_tables(one: Workspace, other: Workspace) -> None:
    for name in (*one.settings.targets[0].signals, "step_scores", "sample_scores", "subset", "score_manifest"):
        mine, theirs = (read_stored(workspace, name).collect() for workspace in (one, other))
        assert_frame_equal(mine, theirs, rel_tol=1e-5, abs_tol=1e-6)


@pytest.mark.parametrize("tokens", [1, 300, 700])
def test_runs_at_a_limit_come_to_what_one_without_does(tmp_path: Path, tiny_model: Path, tokens: int) -> None:
    whole = limited(tmp_path / "whole", tiny_model, "{}")
    total = run(whole).tokens_measured
    made = limited(tmp_path / "limited", tiny_model, f"{{tokens: {tokens}}}")
    spent, calls = [], 0
    while True:
        before = {row[0] for row in signal_rows(made, "likelihoods").select("sample_id").rows()} if calls else set()
        summary = run(made)
        spent.append(summary.tokens_measured)
        calls += 1
        if summary.stopped is None:
            break
        assert tokens <= summary.tokens_measured < tokens + BATCH
        assert summary.stopped == f"{tokens:,} tokens (limits.tokens)"
        assert not made.warehouse.table_metadata(tables.subset_path("best"))
        after = {row[0] for row in signal_rows(made, "likelihoods").select("sample_id").rows()}
        assert len(after) - len(before) == summary.measured["tiny"] > 0
    assert sum(spent) == total
    assert total / (tokens + BATCH) <= len(spent) <= -(-total // tokens)
    assert_equal_tables(made, whole)
    assert subset_ids(made) == subset_ids(whole)
    assert run(made).tokens_measured == 0


def test_the_limit_that_is_just_enough_stops_nothing(tmp_path: Path, tiny_model: Path) -> None:
    total = make_plan(limited(tmp_path / "whole", tiny_model, "{}"), probe=False).targets[0].tokens
    made = limited(tmp_path / "limited", tiny_model, f"{{tokens: {total}}}")
    summary = run(made)
    assert (summary.stopped, summary.tokens_measured) == (None, total)
    assert subset_ids(made)


def test_several_targets_share_the_allowance(tmp_path: Path, tiny_model: Path) -> None:
    made = limited(tmp_path, tiny_model, "{tokens: 300}")
    text = made.config_file.read_text()
    second = f"  - {{name: second, model: {tiny_model}, warmup: {{min_pool: 2}}, signals: [likelihoods]}}\n"
    made.config_file.write_text(text.replace("scores:\n", f"{second}scores:\n"))
    made = Workspace.load(made.config_file)
    summary = run(made)
    assert 300 <= summary.tokens_measured < 300 + BATCH
    assert not made.warehouse.files("checkpoints")
    for _ in range(20):
        if run(made).stopped is None:
            break
    assert len(read_stored(made, "likelihoods", target="second").collect()) == 17


def test_hours_of_devices_are_a_limit_too(tmp_path: Path, tiny_model: Path) -> None:
    made = limited(tmp_path, tiny_model, "{device_hours: 0.0000001}")
    summary = run(made)
    assert summary.stopped == "1e-07 device hours (limits.device_hours)"
    assert 0 < summary.tokens_measured <= BATCH


def test_the_summary_says_so(tmp_path: Path, tiny_model: Path) -> None:
    made = limited(tmp_path, tiny_model, "{tokens: 300}")
    shown = CliRunner().invoke(app, ["run", "--config", str(made.config_file)])
    assert shown.exit_code == 0, shown.output
    assert "stopped at the limit of 300 tokens (limits.tokens); to continue: `curate run`" in " ".join(
        shown.output.split()
    )
    looked = CliRunner().invoke(app, ["run", "--sample", "17", "--config", str(made.config_file)])
    assert "stopped" not in looked.output
    assert looked.exit_code == 0, looked.output


def test_the_plan_says_how_many_runs_it_takes(tmp_path: Path, tiny_model: Path) -> None:
    made = limited(tmp_path, tiny_model, "{tokens: 300}")
    plan = make_plan(made, probe=False)
    runs = -(-plan.targets[0].tokens // 300)
    (line,) = limit_lines(plan, made.settings.limits)
    assert "exceeds limits.tokens of 300 tokens" in line
    assert f"about {runs} runs" in line
    assert limit_lines(plan, Limits(tokens=plan.targets[0].tokens)) == []
    shown = CliRunner().invoke(app, ["plan", "--no-probe", "--config", str(made.config_file)])
    assert "exceeds limits.tokens" in shown.output


def tomorrow(workspace: Workspace) -> None:
    """Let the day's account be of yesterday."""
    document = json.loads(workspace.warehouse.storage.read(tables.spent_path()))
    document["day"] = (datetime.now(UTC) - timedelta(days=1)).date().isoformat()
    workspace.warehouse.storage.write(tables.spent_path(), json.dumps(document).encode())


def test_the_sensor_waits_for_the_next_day(tmp_path: Path, tiny_model: Path) -> None:
    whole = limited(tmp_path / "whole", tiny_model, "{}", SIGNALS[:1])
    total = run(whole).tokens_measured
    made = limited(tmp_path / "limited", tiny_model, "{tokens: 300}", SIGNALS[:1])
    with dg.DagsterInstance.ephemeral() as instance:
        daemon = Daemon(made, instance)
        days = 0
        while True:
            settled = daemon.settle()
            days += 1
            spent = spent_today(made.warehouse).tokens
            assert spent < 300 + BATCH
            skipped = daemon.tick("scoring")
            if waits_for_tomorrow(made.settings.limits, made.warehouse) is None:
                break
            assert settled  # no more than the one run that stopped: nothing is asked for again and again
            assert len(settled) <= 2
            if isinstance(skipped, dg.SkipReason) and "continues after midnight" in str(skipped.skip_message):
                lacking = [s for s in SHARDS if s not in instance.get_materialized_partitions(GRADIENTS)]
                assert lacking
                # Only what is finished is carried on to scores.
                asked = {partition for key, partition in daemon.conditions() if key == "tiny/sample_scores"}
                assert asked.isdisjoint(lacking)
            tomorrow(made)
            if days > 20:
                pytest.fail("it never comes to its end")
        assert instance.get_materialized_partitions(GRADIENTS) == set(SHARDS)
        assert total / (300 + BATCH) <= days <= -(-total // 300) + 1
        for shard in SHARDS:
            daemon.materialize(dg.AssetKey(["tiny", "step_scores"]), SAMPLE_SCORES, partition=shard)
        daemon.materialize(MANIFEST)
        daemon.materialize(SUBSET)
    assert_equal_tables(made, whole)


def test_new_files_are_read_though_the_day_is_spent(tmp_path: Path, tiny_model: Path) -> None:
    made = limited(tmp_path, tiny_model, "{tokens: 300}", SIGNALS[:1])
    with dg.DagsterInstance.ephemeral() as instance:
        daemon = Daemon(made, instance)
        daemon.settle()
        write_shard(tmp_path / "landing" / "d.jsonl", rows(2, start=90))
        assert daemon.settle() == ["raw_corpus+rejected_rows+segmented_steps"]
        requests, reasons = scoring_requests(made, instance, 0.0)
        assert (requests, len(reasons)) == ([], 1)
        assert "`curate run`" in reasons[0]


def test_a_call_of_ones_own_is_not_counted_to_the_day(tmp_path: Path, tiny_model: Path) -> None:
    made = limited(tmp_path, tiny_model, "{tokens: 300}", SIGNALS[:1])
    assert run(made).stopped is not None
    assert spent_today(made.warehouse) == Spent()
    assert waits_for_tomorrow(made.settings.limits, made.warehouse) is None
    assert not instance_of(made).get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))


def test_runs_of_a_day_share_its_account(tmp_path: Path) -> None:
    warehouse, limits = Warehouse(tmp_path), Limits(tokens=100, device_hours=1.0)
    one, two = DayAllowance(limits, warehouse), DayAllowance(limits, warehouse)
    one.spend(60, 10.0)
    two.spend(50, 20.0)
    assert (one.reached(), two.reached()) == (None, None)
    one.settle()
    two.settle()
    two.settle()
    assert spent_today(warehouse) == Spent(110, 30.0)
    assert two.reached() == "100 tokens (limits.tokens)"
    assert Allowance(limits, Spent(0, HOUR)).reached() == "1 device hours (limits.device_hours)"


def test_an_unlimited_run_keeps_no_account(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(2)})
    with dg.DagsterInstance.ephemeral() as instance:
        Daemon(made, instance).settle()
    assert not made.warehouse.storage.exists(tables.spent_path())
    summary = run(made)
    console = Console(record=True, width=200)
    show_summary(made, summary, console)
    assert "stopped" not in console.export_text()
