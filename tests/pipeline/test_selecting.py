"""Selecting in a whole pipeline: little memory, interruptions, and what is stored of a selection."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import polars as pl
import pytest

from curation_assets import tables
from curation_assets.releases.reproduce import reproduce
from curation_assets.subsets import select as selecting
from curation_assets.subsets.select import SelectionError, select, stored_selection, write_subset
from curation_assets.workspace.workspace import Workspace, cache_folder
from curation_resources.storage.table_writer import TableWriter
from tests.pipeline.workspaces import make_workspace, release_subset, rows, run, stored

FILTERS = "filters: {repetition: {paper: true}}"
SUBSETS = """\
subsets:
  - {name: best, score: grace, budget: {fraction: 0.5}}
  - {name: grouped, score: grace, budget: {samples: 4}, selector: {kind: per_prompt}, stratify: [length]}
"""
# Two responses to a prompt, and a sample that is in both files.
SHARDS = {
    "a.jsonl": [*rows(9), *({**row, "response": f"First of all.\n{row['response']}"} for row in rows(4))],
    "b.jsonl": rows(6, start=7),
}


def made(folder: Path, model: Path, in_memory: int) -> Workspace:
    """A workspace that holds so many scores in memory at a time."""
    workspace = make_workspace(folder, model, SHARDS, corpus=FILTERS)
    file = workspace.config_file
    text = re.sub(r"subsets:\n.*\n", SUBSETS, file.read_text())
    file.write_text(text.replace("engine: {", f"engine: {{rows_in_memory: {in_memory}, selection_memory_mib: 256, "))
    return Workspace.load(file)


def nothing_is_left(workspace: Workspace) -> bool:
    """Whether no temporary file is, neither where the warehouse lies nor on this machine."""
    place = cache_folder() / "selection"
    return not workspace.warehouse.storage.unfinished() and not (place.exists() and list(place.iterdir()))


def test_a_release_takes_the_stored_facts_and_selects_nothing(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = made(tmp_path, tiny_model, 10)
    run(workspace)
    for subset in workspace.settings.subsets:
        assert len(workspace.warehouse.read_table(tables.subset_path(subset.name))) >= 4
        assert stored_selection(workspace, subset).facts() == select(workspace, subset).selection.facts()
    assert stored_selection(workspace, subset).facts()["duplicates_left_out"] == 2
    assert nothing_is_left(workspace)
    with monkeypatch.context() as patch:
        patch.setattr(selecting, "choose", None)
        release, _ = release_subset(workspace)
    assert reproduce(workspace, release.manifest, f"{tables.release_dir('best')}/1").identical


@pytest.mark.parametrize(
    "content", [b"", b'{"version": 3', b"\xff", b"[]", b"{}", b'{"version": 3, "fingerprint": "x"}']
)
def test_facts_that_cannot_be_read_are_found_again_and_stored(tmp_path: Path, tiny_model: Path, content: bytes) -> None:
    workspace = made(tmp_path, tiny_model, 10)
    run(workspace)
    best, path = workspace.settings.subset("best"), tables.selection_path("best")
    right = workspace.warehouse.read_json(path)
    workspace.warehouse.storage.write(path, content)
    assert stored_selection(workspace, best).document() == right["selection"]
    assert workspace.warehouse.read_json(path) == right
    for change in ({"new_fact": 1}, {"whole": None}):
        other = right | {
            "selection": {**right["selection"], **change},
            "version": right["version"] + ("whole" in change),
        }
        workspace.warehouse.write_json(path, other)
        assert stored_selection(workspace, best).document() == right["selection"]


def test_facts_of_another_selection_are_not_taken(tmp_path: Path, tiny_model: Path) -> None:
    workspace = made(tmp_path, tiny_model, 10)
    run(workspace)
    best, path = workspace.settings.subset("best"), tables.selection_path("best")
    document = workspace.warehouse.read_json(path)
    right = stored_selection(workspace, best)
    document["selection"]["duplicates"] = 99
    workspace.warehouse.write_json(path, document | {"fingerprint": "another"})
    assert stored_selection(workspace, best).facts() == right.facts()
    workspace.warehouse.storage.remove(path)
    assert stored_selection(workspace, best).facts() == right.facts()
    workspace.warehouse.write_json(path, document)
    assert stored_selection(workspace, best).duplicates == 99


def test_a_choice_that_is_interrupted_leaves_the_former_subset(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = made(tmp_path, tiny_model, 0)
    run(workspace)
    path, best = tables.subset_path("best"), workspace.settings.subset("best")
    before, files = workspace.warehouse.storage.read(path), stored(workspace)
    real = TableWriter.add

    def dies(self: TableWriter, frame: pl.DataFrame) -> None:
        real(self, frame)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TableWriter, "add", dies)
        with pytest.raises(KeyboardInterrupt):
            write_subset(workspace, best)
    assert workspace.warehouse.storage.read(path) == before
    assert stored(workspace) == files
    assert nothing_is_left(workspace)
    assert write_subset(workspace, best).content_digest == select(workspace, best).selection.content_digest


def test_scores_of_another_configuration_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    workspace = made(tmp_path, tiny_model, 0)
    run(workspace)
    workspace.config_file.write_text(workspace.config_file.read_text().replace("alpha: 0.7", "alpha: 0.2"))
    other = Workspace.load(workspace.config_file)
    with pytest.raises(SelectionError, match="are outdated"):
        select(other, other.settings.subset("best"))
    assert nothing_is_left(other)


def test_selectors_that_compare_vectors_say_that_they_stay_in_memory(
    tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(6)}, signals=("embeddings_mean",))
    text = workspace.config_file.read_text().replace("engine: {", "engine: {rows_in_memory: 5, ")
    score = "scores: [{name: cover, target: tiny, method: k_center}]\n"
    subset = "subsets: [{name: best, score: cover, budget: {samples: 3}}]\n"
    workspace.config_file.write_text(text + score + subset)
    workspace = Workspace.load(workspace.config_file)
    run(workspace)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "curation"):
        found = select(workspace, workspace.settings.subset("best"))
    assert len(found.rows) == 3
    assert "subset best: selector k_center holds all 6 candidates and their vectors in memory" in caplog.text
