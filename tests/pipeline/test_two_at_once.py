"""Two main jobs at the same time on a fresh home: neither fails, and nothing is lost or doubled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from curation_assets import tables
from curation_assets.signals.store import signal_dir
from tests.pipeline.workspaces import make_workspace, rows, run, sample_scores, subset_ids


@pytest.mark.slow
def test_two_runs_at_once_come_to_what_one_comes_to(tmp_path: Path, tiny_model: Path) -> None:
    shards = {"a.jsonl": rows(20), "b.jsonl": rows(20, start=100)}
    workspace = make_workspace(tmp_path / "two", tiny_model, shards)
    command = [str(Path(sys.executable).parent / "curate"), "run", "--config", str(workspace.config_file)]
    environment = os.environ | {"COLUMNS": "100"}
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    for process in started:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    single = make_workspace(tmp_path / "one", tiny_model, shards)
    run(single)
    assert subset_ids(workspace) == subset_ids(single)
    assert sample_scores(workspace)["grace"].to_list() == pytest.approx(
        sample_scores(single)["grace"].to_list(), rel=1e-5
    )
    folder = signal_dir(workspace, workspace.settings.targets[0], "step_gradients")
    assert folder is not None
    assert len(workspace.warehouse.names(tables.raw_corpus_dir())) == 2
    records = [workspace.warehouse.read_json(f"{folder}/shards/{name}.json") for name in shards]
    assert sum(record["rows"] for record in records) == 40
    stored = sum(
        len(workspace.warehouse.read_table(f"{folder}/{p}.parquet")) for p in workspace.warehouse.names(folder)
    )
    assert stored == 40  # the second run waited for the pool's slot, and found everything measured
