"""Gradient spectra through the pipeline: a table of lists by layer, a score, and what a plan says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from curation_assets.operations.plan import make_plan
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import make_workspace, rows, run, sample_scores, signal_rows, subset_ids

SCORES = """\
scores:
  - {name: rich, target: tiny, method: spectra}
  - {name: even, target: tiny, method: spectra, projection: v, length_control: largest_rank}
  - {name: flat, target: tiny, method: spectra, metric: nuclear_norm, projection: o}
subsets:
  - {name: best, score: rich, budget: {samples: 3}}
engine"""


def workspace_of(folder: Path, model: Path) -> Workspace:
    made = make_workspace(
        folder,
        model,
        {"a.jsonl": rows(7), "b.jsonl": [{"prompt": "?", "response": "y"}]},
        signals=("gradient_spectra",),
    )
    made.config_file.write_text(made.config_file.read_text().replace("engine", SCORES, 1))
    return Workspace.load(made.config_file)


def test_spectra_are_stored_by_layer_scored_and_planned(tmp_path: Path, tiny_model: Path) -> None:
    workspace = workspace_of(tmp_path, tiny_model)
    (planned,) = make_plan(workspace, probe=False).targets
    summary = run(workspace)
    assert planned.tokens == summary.tokens_measured
    assert planned.passes[0].cost == pytest.approx(3 * 8)
    stored = signal_rows(workspace, "gradient_spectra")
    ranks, norms, largest = (
        np.array(stored[name].to_list(), dtype=float) for name in ("effective_rank", "nuclear_norm", "largest_rank")
    )
    assert ranks.shape == norms.shape == (8, 2, 4)
    assert (ranks <= largest * (1 + 1e-5)).all()
    assert np.array(stored["adjacent"].to_list()).shape == (8, 1, 4)
    assert np.array(stored["same_layer"].to_list()).shape == (8, 2, 2)
    scores = {row["sample_id"]: row for row in sample_scores(workspace).iter_rows(named=True)}
    for place, sample_id in enumerate(stored["sample_id"]):
        assert scores[sample_id]["rich"] == pytest.approx(ranks[place].mean())
        assert scores[sample_id]["even"] == pytest.approx((ranks / largest)[place, :, 2].mean())
        assert scores[sample_id]["flat"] == pytest.approx(-norms[place, :, 3].mean())
    order = sorted(scores, key=lambda sample_id: (-scores[sample_id]["rich"], sample_id))
    assert set(subset_ids(workspace)) == set(order[:3])
    # Nothing is measured twice.
    assert run(workspace).tokens_measured == 0
