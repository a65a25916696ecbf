"""What a run and `curate doctor` say about the files of the landing area, until they change."""

from __future__ import annotations

import io
import json
from pathlib import Path

import dagster as dg
import pytest
from rich.console import Console

from curation_assets.cli.run_summary import show_summary
from curation_assets.operations.doctor import Finding, examine
from curation_assets.operations.intake import ignored_line, stored_intake
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from tests.pipeline.workspaces import instance_of, landed, make_workspace, rows, run


def said(workspace: Workspace) -> str:
    """What `curate run` prints."""
    console = Console(file=io.StringIO(), width=200)
    show_summary(workspace, run(workspace), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def finding(workspace: Workspace, what: str) -> Finding:
    return next(found for found in examine(workspace.config_file) if found.what == what)


def test_rejections_are_told_by_every_run_until_the_file_changes(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": [*rows(3), {"prompt": "q", "response": " "}]})
    (landed(workspace) / "b.parquet").write_bytes(b"no parquet")
    for _ in range(2):
        text = said(workspace)
        assert "rejected: 1 x empty_response, 1 x not_parquet; see: curate table rejected_rows" in text
        assert "b.parquet: the file is not readable Parquet" in text
    (landed(workspace) / "b.parquet").unlink()
    assert "not_parquet" not in said(workspace)


def test_fill_rates_of_mapped_columns_are_told(tmp_path: Path, tiny_model: Path) -> None:
    shards = {"a.jsonl": [{"q": "2?", "r": row["response"], "k": "5"} for row in rows(4)]}
    shards["b.jsonl"] = [{"q": "3?", "r": row["response"], "k": None} for row in rows(4, 10)]
    mapping = "columns: {prompt: q, response: r, answer: k, domain: topic.name}"
    workspace = make_workspace(tmp_path, tiny_model, shards, corpus=mapping)
    text = said(workspace)
    assert "mapped columns, share of rows with a value: k 50%, q 100%, r 100%, topic.name 0%" in text
    assert "corpus.columns names topic.name, which no row has a value for. Their fields: k, q, r." in text
    assert stored_intake(workspace).mapped.filled == {"k": 4, "q": 8, "r": 8, "topic.name": 0}
    checked = finding(workspace, "mapped columns")
    assert checked.warning
    assert "topic.name, which no row has a value for" in checked.found


def test_a_landing_area_of_which_nothing_can_be_read_is_an_error(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": [{"left": 1}]})
    with pytest.raises(UserError, match=r"no row of .*landing can be used"):
        said(workspace)
    assert not finding(workspace, "a.jsonl").ok
    (landed(workspace) / "a.jsonl").unlink()
    (landed(workspace) / "rows.csv").write_text("a,b")
    with pytest.raises(UserError, match="gone"):
        said(workspace)


def test_responses_without_an_answer_are_told(tmp_path: Path, tiny_model: Path) -> None:
    silent = [{"prompt": f"{n}?", "response": f"We count to {n}.\nThen we stop at {n}."} for n in range(4)]
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": [*rows(2), *silent]})
    text = said(workspace)
    assert "4 of 6 responses state no answer that is recognized, and GRACE gives them no score" in text
    intake = stored_intake(workspace)
    assert len(intake.examples) == 3
    assert f"see: curate show {intake.examples[0]}" in text


def test_ignored_files_with_a_reason_come_first() -> None:
    line = ignored_line([*(f"{n}.csv" for n in range(7)), "x.jsonl (a folder)"])
    assert line is not None
    assert "x.jsonl (a folder), 0.csv, 1.csv, 2.csv, 3.csv and 3 more; see: curate doctor" in line
    assert ignored_line([]) is None


def test_the_ui_names_ignored_files(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(2)})
    (landed(workspace) / "notes.txt").write_text("x")
    run(workspace)
    (check,) = (
        instance_of(workspace)
        .event_log_storage.get_latest_asset_check_execution_by_key(
            [dg.AssetCheckKey(dg.AssetKey("raw_corpus"), "files_readable")]
        )
        .values()
    )
    event = check.event
    assert event is not None
    evaluation = event.get_dagster_event().asset_check_evaluation_data
    assert evaluation.metadata["ignored_files"].value == ["notes.txt"]


def test_endings_are_known_in_any_case(tmp_path: Path, tiny_model: Path) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(2)})
    (landed(workspace) / "B.JSONL").write_text("".join(json.dumps(row) + "\n" for row in rows(2, 10)))
    assert run(workspace).measured == {"tiny": 4}
