"""The share of responses marked right is shown of pool and subset, wherever a selection is shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner

from curation_assets.cli import command
from curation_assets.cli.app import app
from curation_assets.releases.traces import release_traces, subset_traces
from curation_assets.subsets.facts import Selection
from curation_assets.subsets.select import select, stored_selection
from curation_assets.subsets.what_if import what_if
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.files import FolderStorage
from tests.pipeline.workspaces import instance_of, make_workspace, release_folder, release_subset, rows, run

MARKS = (True, False, None, True, False, False, True, None, True, True, None, False)
"""Marks of twelve rows: five right, four wrong."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workspace:
    records = [row if mark is None else {**row, "correct": mark} for row, mark in zip(rows(12), MARKS, strict=True)]
    # The last one is marked by its row's answer: it is wrong.
    records[-1] = {**rows(12)[-1], "answer": "99"}
    workspace = make_workspace(tmp_path_factory.mktemp("marked"), tiny_model, {"a.jsonl": records})
    run(workspace)
    release_subset(workspace)
    return workspace


def share(marks: Sequence[bool | None]) -> float:
    known = [mark for mark in marks if mark is not None]
    return sum(known) / len(known)


def chosen(made: Workspace) -> float:
    """The share of the subset, from the numbers in its prompts."""
    selection = select(made, made.settings.subset("best"))
    numbers = made_numbers(made)
    return share([MARKS[numbers[name]] for name in selection.rows["sample_id"]])


def made_numbers(made: Workspace) -> dict[str, int]:
    traces = subset_traces(made, made.settings.subset("best")).rows
    said = zip(traces["sample_id"], traces["messages"], strict=True)
    return {name: int(text.split("Count on from ")[1].split(".")[0]) for name, text in said}


def test_the_facts_of_a_selection_have_the_shares(made: Workspace) -> None:
    facts = stored_selection(made, made.settings.subset("best")).facts()
    assert facts["marked_right_or_wrong"] == 9
    assert facts["share_right_pool"] == pytest.approx(5 / 9)
    assert facts["share_right_selected"] == pytest.approx(chosen(made))
    assert Selection.of_document(select(made, made.settings.subset("best")).selection.document()).facts() == facts


def test_a_filter_selects_only_what_is_marked_right(made: Workspace) -> None:
    found = what_if(made, "best", ["filters.correct=true"])
    assert found.selection.facts()["share_right_selected"] == 1.0
    table = {name: (now, then) for name, now, then in found.side_by_side()}
    assert list(table["share right"]) == pytest.approx([chosen(made), 1.0])
    assert table["share right pool"][1] == pytest.approx(5 / 9)


def test_card_and_pages_name_the_shares(made: Workspace) -> None:
    said = f"{chosen(made):.1%} of the subset, 55.6% of the pool (9 samples of it are marked)"
    folder = release_folder(made)
    assert f"| marked right | {said} |" in (folder / "README.md").read_text()
    assert said in (folder / "traces.html").read_text()
    assert ("marked right", said) in release_traces(FolderStorage(folder.parent), folder.name).facts
    assert ("marked right", said) in subset_traces(made, made.settings.subset("best")).facts


def test_the_asset_has_the_shares_as_numbers(made: Workspace) -> None:
    event = instance_of(made).get_latest_materialization_event(dg.AssetKey(["subsets", "best"]))
    assert event is not None
    assert event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    assert metadata["share_right_pool"].value == pytest.approx(5 / 9)
    assert metadata["share_right_selected"].value == pytest.approx(chosen(made))
    assert "share right pool" in str(metadata["facts"].value)


def test_run_and_select_print_the_shares(made: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.console, "width", 200, raising=False)
    config = ["-c", str(made.config_file)]
    said = f"marked right: {chosen(made):.1%} of the subset, 55.6% of the pool"
    assert said in CliRunner().invoke(app, ["run", *config]).output
    assert "share right pool" in CliRunner().invoke(app, ["select", "best", *config]).output


def test_where_nothing_is_marked_nothing_is_said(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(6)})
    run(workspace)
    subset = workspace.settings.subset("best")
    assert not any("right" in name for name in stored_selection(workspace, subset).facts())
    assert not any(name == "marked right" for name, _ in subset_traces(workspace, subset).facts)
    assert not any("right" in name for name, _, _ in what_if(workspace, "best").side_by_side())
