"""A whole pipeline whose subsets are chosen on disk: the same tables and releases as in memory."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curation_assets import tables
from curation_assets.releases.reproduce import reproduce
from curation_assets.subsets import select as selecting
from curation_assets.subsets.select import SelectionError, select, survey, write_subset
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
    """A workspace that holds so many scores in memory."""
    workspace = make_workspace(folder, model, SHARDS, corpus=FILTERS)
    file = workspace.config_file
    text = re.sub(r"subsets:\n.*\n", SUBSETS, file.read_text())
    file.write_text(text.replace("engine: {", f"engine: {{rows_in_memory: {in_memory}, selection_memory_mib: 256, "))
    return Workspace.load(file)


def nothing_is_left(workspace: Workspace) -> bool:
    """Whether no temporary file is, neither where the warehouse lies nor on this machine."""
    place = cache_folder() / "selection"
    return not workspace.warehouse.storage.unfinished() and not (place.exists() and list(place.iterdir()))


def test_subsets_and_releases_are_those_of_memory(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, spilled = made(tmp_path / "held", tiny_model, 100), made(tmp_path / "spilled", tiny_model, 10)
    run(held)
    with monkeypatch.context() as patch:
        patch.setattr(selecting, "resolve_duplicates", None)  # what only choosing in memory calls
        run(spilled)
    for subset in held.settings.subsets:
        path = tables.subset_path(subset.name)
        here, there = held.warehouse, spilled.warehouse
        assert len(here.read_table(path)) >= 4
        assert there.read_table(path).equals(here.read_table(path))
        assert there.table_metadata(path)["content_digest"] == here.table_metadata(path)["content_digest"]
        assert survey(spilled, subset).facts() == survey(held, subset).facts()
    assert survey(spilled, subset).facts()["duplicates_left_out"] == 2
    assert nothing_is_left(spilled)
    (one, _), (other, _) = release_subset(held), release_subset(spilled)
    for said in ("content_digest", "subset_digest", "selection", "score_distribution"):
        assert one.manifest[said] == other.manifest[said]
    assert one.manifest["files"] == other.manifest["files"]  # pictures among them
    assert reproduce(spilled, other.manifest, f"{tables.release_dir('best')}/1").identical


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
    assert write_subset(workspace, best).content_digest == select(workspace, best).told.content_digest


def test_scores_of_another_configuration_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    workspace = made(tmp_path, tiny_model, 0)
    run(workspace)
    workspace.config_file.write_text(workspace.config_file.read_text().replace("alpha: 0.7", "alpha: 0.2"))
    other = Workspace.load(workspace.config_file)
    with pytest.raises(SelectionError, match="are outdated"):
        survey(other, other.settings.subset("best"))
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
        told: Any = survey(workspace, workspace.settings.subset("best"))
    assert told.summary.selected == 3
    assert "subset best: selector k_center compares vectors, so its pool of 6 rows is held in memory" in caplog.text
