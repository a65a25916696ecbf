"""The real daemon, from `curate ui`: files that come, change and go, and a run that fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from curation_assets.defs.instance import open_instance
from curation_assets.tables import score_manifest_path
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import landed, make_workspace, rows, stored, subset_ids, write_shard
from tests.ui import UI, serving

pytestmark = pytest.mark.system

SHARDS = {f"{name}.jsonl": rows(3, start=50 * number) for number, name in enumerate("abcdef")}
FRESHNESS = "freshness: {fail_hours: 48}\n"


@pytest.fixture
def workspace(tmp_path: Path, tiny_model: Path) -> Workspace:
    """Six shards, and a command that writes alerts to alerts.jsonl."""
    made = make_workspace(tmp_path, tiny_model, SHARDS)
    script = f"import sys; open({str(tmp_path / 'alerts.jsonl')!r}, 'a').write(sys.stdin.read() + chr(10))"
    alerts = f"alerts: {{command: [{sys.executable}, -c, {json.dumps(script)}]}}\n"
    made.config_file.write_text(made.config_file.read_text() + alerts + FRESHNESS)
    return Workspace.load(made.config_file)


@pytest.fixture
def ui(workspace: Workspace) -> Iterator[UI]:
    """`curate ui` on the workspace."""
    with serving(workspace.config_file, workspace.folder / "ui.log") as running:
        yield running


def presence(workspace: Workspace) -> dict[str, bool]:
    """What the manifest says of every shard; empty before there is one."""
    if not workspace.warehouse.table_metadata(score_manifest_path("tiny")):
        return {}
    manifest = workspace.warehouse.read_table(score_manifest_path("tiny"))
    return dict(manifest.select("shard", "present").iter_rows())


def subset_holds(workspace: Workspace, count: int, new: set[str] | None = None) -> bool:
    """Whether the subset has so many rows, and all of its samples are of the present shards' rows."""
    if not workspace.warehouse.table_metadata("subsets/best.parquet"):
        return False
    ids = set(subset_ids(workspace))
    return len(ids) == count and (new is None or ids <= new)


def samples_of(workspace: Workspace, *shards: str) -> set[str]:
    return {
        sample
        for shard in shards
        for sample in workspace.warehouse.read_table(f"corpus/raw_corpus/{shard}.parquet")["sample_id"]
    }


def alerts(workspace: Workspace) -> list[tuple[str, list[str]]]:
    """Event and partitions of every alert so far."""
    told = workspace.folder / "alerts.jsonl"
    lines = told.read_text().splitlines() if told.exists() else []
    return [(alert["event"], alert["partitions"]) for alert in map(json.loads, lines)]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.folder_only("a folder stands where a file has to be written")
def test_files_come_change_and_go_and_a_failure_is_told_of(
    workspace: Workspace, ui: UI, monkeypatch: pytest.MonkeyPatch
) -> None:
    ui.wait_for("the subset", lambda: subset_holds(workspace, 9))
    first = {path: workspace.warehouse.read_json(path) for path in stored(workspace, "signals", "*.jsonl.json")}

    # One file gains a row and loses another, one goes, one is new.
    write_shard(landed(workspace) / "a.jsonl", [*SHARDS["a.jsonl"][1:], *rows(1, start=900)])
    (landed(workspace) / "b.jsonl").unlink()
    write_shard(landed(workspace) / "g.jsonl", rows(5, start=700))
    wanted = {name: name != "b.jsonl" for name in [*SHARDS, "g.jsonl"]}
    ui.wait_for("the manifest of the changed corpus", lambda: presence(workspace) == wanted)
    left = samples_of(workspace, *(name for name, present in wanted.items() if present))
    ui.wait_for("the subset of the changed corpus", lambda: subset_holds(workspace, 10, left))
    second = {path: workspace.warehouse.read_json(path) for path in stored(workspace, "signals", "*.jsonl.json")}
    changed = {Path(path).name: record for path, record in second.items() if record != first.get(path)}
    assert {name: (record["measured"], record["skipped"]) for name, record in changed.items() if record} == {
        "a.jsonl.json": (1, 2),
        "g.jsonl.json": (5, 0),
    }

    # A run that cannot write its table fails, and is told of.
    (workspace.folder / "warehouse/steps/segmented_steps/h.jsonl.parquet").mkdir()
    write_shard(landed(workspace) / "h.jsonl", rows(1, start=800))
    ui.wait_for("the alert", lambda: alerts(workspace))
    told = (workspace.folder / "alerts.jsonl").read_text()
    assert alerts(workspace)[0] == ("run_failed", ["h.jsonl", "h.jsonl"]), told

    # The subset has been made a moment ago: its freshness policy passes.
    monkeypatch.setenv("DAGSTER_HOME", str(workspace.folder / ".dagster"))
    with open_instance(workspace) as instance:
        ui.wait_for("the subset's freshness", lambda: _freshness(instance) == "PASS")


def _freshness(instance: dg.DagsterInstance) -> str:
    found = instance.get_freshness_state_records([dg.AssetKey(["subsets", "best"])])
    return next((record.freshness_state.value for record in found.values()), "none")
