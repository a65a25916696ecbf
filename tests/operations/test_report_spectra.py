"""The report on gradient spectra: means over layers and correlations against loops, length controls, when it is due."""

from __future__ import annotations

import math
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest

from curation_assets.definitions import build_definitions
from curation_assets.defs.reports import SPECTRA_KEY
from curation_assets.operations.report_spectra import curves_by_layer, matrix, of_samples
from curation_assets.operations.stages import Survey, stage_named
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.workspace import Workspace
from curation_resources.scoring.spec import PROJECTIONS
from tests.models import write_tiny_model
from tests.operations.test_report_comparison import slow_spearman
from tests.pipeline.workspaces import instance_of, make_workspace, rows, run, signal_rows

SCORES = """\
scores:
  - {name: rich, target: tiny, method: spectra}
  - {name: likely, target: tiny, method: grape}
subsets:
  - {name: best, score: rich, budget: {samples: 3}}
engine"""


def outdated(workspace: Workspace) -> bool:
    """True if the stored report was made from something else than is stored now."""
    return bool(Survey(workspace, {}).outdated(stage_named("spectra"), None))


def workspace_of(folder: Path, model: Path) -> Workspace:
    made = make_workspace(
        folder,
        model,
        {"a.jsonl": rows(15), "b.jsonl": [*rows(8, start=40), {"prompt": "?", "response": "y"}, *rows(1)]},
        signals=("gradient_spectra", "likelihoods"),
    )
    made.config_file.write_text(made.config_file.read_text().replace("engine", SCORES, 1))
    return Workspace.load(made.config_file)


def test_the_tables_are_those_of_loops_and_the_asset_shows_them(tmp_path: Path, tiny_model: Path) -> None:
    workspace = workspace_of(tmp_path, tiny_model)
    assert not outdated(workspace)
    run(workspace)
    assert not outdated(workspace)
    stored = signal_rows(workspace, "gradient_spectra")
    assert len(stored) == 24  # of a sample that is there twice once
    layers = read_stored(workspace, "spectra_by_layer").collect()
    assert layers["samples"].to_list() == [24] * 8
    assert layers["family"].unique().to_list() == ["qwen2"]
    for row in layers.iter_rows(named=True):
        layer, place = row["layer"], PROJECTIONS.index(row["projection"])
        own = list(stored.iter_rows(named=True))
        ranks = [one["effective_rank"][layer][place] for one in own]
        shares = [one["effective_rank"][layer][place] / one["largest_rank"][layer][place] for one in own]
        assert row["depth"] == (layer + 0.5) / 2
        assert row["effective_rank"] == pytest.approx(np.mean(ranks))
        assert row["share_of_largest"] == pytest.approx(np.mean(shares))
        assert row["nuclear_norm"] == pytest.approx(np.mean([one["nuclear_norm"][layer][place] for one in own]))
        cosines = [one["adjacent"][layer][place] for one in own] if layer == 0 else None
        assert row["adjacent"] == (None if cosines is None else pytest.approx(np.mean(cosines)))
    found = read_stored(workspace, "spectra_correlations").collect()
    assert set(found["metric"]) == {"response_tokens", "n_steps", "correct", "tiny.likely"}
    likely = dict(read_stored(workspace, "sample_scores").collect().select("sample_id", "likely").iter_rows())
    ids = stored["sample_id"].to_list()
    ranks_of = {one["sample_id"]: np.mean(one["effective_rank"]) for one in stored.iter_rows(named=True)}
    (value,) = found.filter(metric="tiny.likely", spectrum="effective_rank", control="none")["correlation"]
    assert value == pytest.approx(slow_spearman([likely[one] for one in ids], [float(ranks_of[one]) for one in ids]))
    values, names, columns = matrix(found, "tiny")
    assert (len(values), len(values[0])) == (len(names), len(columns)) == (4, 6)
    lines = curves_by_layer(layers, "effective_rank")
    assert list(lines) == list(PROJECTIONS)
    assert [x for x, _ in lines["q"]] == [0.25, 0.75]
    job = build_definitions(workspace).resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(asset_selection=[SPECTRA_KEY], instance=instance_of(workspace))
    (event,) = result.asset_materializations_for_node(SPECTRA_KEY.to_python_identifier())
    for name in ("effective_rank", "nuclear_norm", "share_of_largest", "tiny_correlations"):
        shown = event.metadata[name]
        assert isinstance(shown, dg.MarkdownMetadataValue)
        assert "data:image/png;base64," in str(shown.value)


def test_it_is_due_when_scores_are_others(tmp_path: Path, tiny_model: Path) -> None:
    workspace = workspace_of(tmp_path, tiny_model)
    run(workspace)
    text = workspace.config_file.read_text()
    workspace.config_file.write_text(text.replace("method: grape}", "method: perplexity}"))
    changed = Workspace.load(workspace.config_file)
    run(changed)
    assert not outdated(changed)
    found = read_stored(changed, "spectra_correlations").collect()
    (value,) = found.filter(metric="tiny.likely", spectrum="effective_rank", control="none")["correlation"]
    assert value is not None
    target = workspace.warehouse.storage
    target.remove("reports/spectra_by_layer.parquet")
    assert outdated(changed)


def test_ranks_within_a_decile_of_length_do_not_see_length() -> None:
    count = 200
    rng = np.random.default_rng(0)
    lengths = rng.permutation(count) + 10
    quality = rng.normal(size=count)
    # R is length, and a little quality: only the ranks within a decile show the latter.
    frame = pl.DataFrame(
        {
            "sample_id": [f"{number:03d}" for number in range(count)],
            "response_tokens": lengths,
            "n_steps": [1] * count,
            "nuclear_norm": [[[1.0] * 4] for _ in range(count)],
            "effective_rank": [[[float(length + 2 * one)] * 4] for length, one in zip(lengths, quality, strict=True)],
            "largest_rank": [[[int(length)] * 4] for length in lengths],
        }
    )
    found = of_samples(frame)

    def against_quality(column: str) -> float:
        return float(np.corrcoef(np.argsort(np.argsort(found[column])), np.argsort(np.argsort(quality)))[0, 1])

    assert abs(against_quality("effective_rank.none")) < 0.15
    assert against_quality("effective_rank.length_bin") > 0.25
    assert against_quality("effective_rank.largest_rank") > 0.7
    bins = found.group_by("length_bin").agg(pl.len(), pl.col("effective_rank.length_bin").mean())
    assert bins["len"].to_list() == [20] * 10
    assert all(math.isclose(value, 0.5) for value in bins["effective_rank.length_bin"])


def test_several_targets_are_compared_by_family(tmp_path: Path, tiny_model: Path) -> None:
    made = workspace_of(tmp_path, tiny_model)
    other = write_tiny_model(tmp_path / "other", seed=1)
    text = made.config_file.read_text()
    target = f"  - {{name: second, model: {other}, warmup: none, signals: [gradient_spectra]}}\nscores:"
    made.config_file.write_text(text.replace("scores:", target, 1))
    workspace = Workspace.load(made.config_file)
    run(workspace)
    layers = read_stored(workspace, "spectra_by_layer").collect()
    lines = curves_by_layer(layers, "effective_rank")
    assert list(lines) == ["second (qwen2)", "tiny (qwen2)"]
    first = layers.filter(target="tiny", layer=0)["effective_rank"].mean()
    assert lines["tiny (qwen2)"][0][1] == pytest.approx(first)
    assert set(read_stored(workspace, "spectra_correlations").collect()["target"]) == {"second", "tiny"}
