"""The shortcuts of the suite change no result: equal plots are drawn once, instances in memory do less work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from curation_assets.defs.main_job import MainJob
from curation_resources import plots
from tests import memory_storage, plots_once
from tests.pipeline.workspaces import make_workspace, rows


def test_equal_plots_are_drawn_once_and_others_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    draw = plots._markdown

    def counted(figure: Any, title: str) -> str:
        drawn.append(title)
        return draw(figure, title)

    monkeypatch.setattr(plots, "_markdown", counted)
    first = plots.curve([0.25, 0.5], "drawn once", "x", "y")
    assert plots.curve([0.25, 0.5], "drawn once", "x", "y") == first
    assert drawn == ["drawn once"]
    assert plots.curve([0.25, 0.75], "drawn once", "x", "y") != first
    assert plots.curve([0.25, 0.5], "drawn once", "x", "z") != first
    assert plots.scatter([0.25], [0.5], "drawn once", "x", "y") != first
    assert len(drawn) == 4


def test_a_plot_for_a_file_is_drawn_into_it(tmp_path: Path) -> None:
    markdown = plots.curve([0.125], "for a file", "x", "y")
    with plots.drawn_to(tmp_path / "curve.png"):
        assert plots.curve([0.125], "for a file", "x", "y") == markdown
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_is_drawn_again_is_the_remembered_one() -> None:
    remembered = plots.curve([0.0625], "again", "x", "y")
    with plots_once.all_drawn():
        assert plots.curve([0.0625], "again", "x", "y") == remembered


def test_all_that_draws_is_remembered() -> None:
    returning_markdown = {
        name
        for name, value in vars(plots).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__annotations__", {}).get("return") == "str"
    }
    assert {name for name in returning_markdown if getattr(plots, name).__module__ == plots.__name__} == set(
        plots_once.DRAWING
    )


def test_lighter_instances_hold_what_dagsters_own_hold(tiny_model: Path, tmp_path: Path) -> None:
    held = []
    for name in ("lighter", "own"):
        (tmp_path / name).mkdir()
        workspace = make_workspace(tmp_path / name, tiny_model, {"a.jsonl": rows(4), "b.jsonl": rows(4, start=4)})
        if name == "own":
            memory_storage.restore()
        try:
            with dg.DagsterInstance.ephemeral() as instance:
                MainJob(workspace, instance).run()
                MainJob(workspace, instance).release(workspace.settings.subset("best"))
                held.append(contents(instance))
        finally:
            memory_storage.lighten()
    assert held[0] == held[1]
    assert len(held[0]["events"]) > 50


def contents(instance: dg.DagsterInstance) -> dict[str, list[Any]]:
    """Runs, events and partitions of an instance, without what differs between any two runs."""
    runs = sorted(instance.get_runs(), key=lambda run: instance.get_run_stats(run.run_id).start_time or 0)
    events = [event for run in runs for entry in instance.all_logs(run.run_id) if (event := entry.dagster_event)]
    keys = sorted(instance.all_asset_keys(), key=str)
    return {
        "runs": [(run.job_name, run.status, sorted(run.tags)) for run in runs],
        "events": [(event.event_type, event.step_key, str(event.asset_key), event.partition) for event in events],
        "keys": [str(key) for key in keys],
        "partitions": list(instance.get_dynamic_partitions("shards")),
        "materialized": [sorted(instance.get_materialized_partitions(key)) for key in keys],
    }
