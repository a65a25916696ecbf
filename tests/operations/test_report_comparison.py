"""The comparison of subsets against sets and loops over rows, and the launchpad's what-if."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from curation_assets.definitions import build_definitions
from curation_assets.defs.reports import COMPARISON_KEY, WHAT_IF_KEY
from curation_assets.operations import report_comparison as comparison
from curation_assets.operations.report_comparison import matrix
from curation_assets.subsets import manifest
from curation_assets.subsets.manifest import scored_pool
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.workspace.workspace import Workspace
from curation_resources.plots import heat_map, stacked_bars
from tests.pipeline.workspaces import instance_of, make_workspace, rows, run

SCORES = """\
scores:
  - {name: grace, target: tiny, method: grace, min_steps: 0}
  - {name: likely, target: tiny, method: grape}
  - {name: long, target: tiny, method: longest}
subsets:
  - {name: best, score: grace, budget: {fraction: 0.5}}
  - {name: longest_half, score: long, budget: {fraction: 0.5}}
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workspace:
    folder = tmp_path_factory.mktemp("comparison")
    made = make_workspace(folder, tiny_model, {"a.jsonl": rows(12), "b.jsonl": rows(5, 12)}, signals=("likelihoods",))
    text = made.config_file.read_text().replace("[likelihoods]", "[step_gradients, likelihoods]")
    made.config_file.write_text(text.replace("engine:", SCORES + "engine:"))
    loaded = Workspace.load(made.config_file)
    run(loaded)
    return loaded


def cells(workspace: Workspace, comparison: str) -> dict[tuple[str, str], tuple[float | None, int]]:
    frame = read_stored(workspace, "subset_comparison").collect()
    rows = frame.rows(named=True)
    return {(r["left"], r["right"]): (r["value"], r["samples"]) for r in rows if r["comparison"] == comparison}


def ids(workspace: Workspace, subset: str) -> set[str]:
    return set(read_stored(workspace, "subset", subset=subset).collect()["sample_id"])


def test_overlaps_are_those_of_sets(workspace: Workspace) -> None:
    best, long = ids(workspace, "best"), ids(workspace, "longest_half")
    found = cells(workspace, "overlap")
    assert found["best", "longest_half"] == (len(best & long) / len(best | long), len(best & long))
    assert found["best", "best"] == (1.0, len(best))
    assert cells(workspace, "baseline")["longest_half", "longest"] == (1.0, len(long))


def slow_ranks(values: list[float]) -> list[float]:
    return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]


def slow_spearman(left: list[float], right: list[float]) -> float:
    a, b = slow_ranks(left), slow_ranks(right)
    mean = (len(a) + 1) / 2
    products = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    spread = sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b)
    return float(products / spread**0.5)


def test_rank_correlations_are_those_of_loops(workspace: Workspace) -> None:
    pool = read_stored(workspace, "sample_scores").collect()
    for (left, right), (value, samples) in cells(workspace, "rank_correlation").items():
        both = pool.select(left, right) if left != right else pool.select(left, pool[right].alias("again"))
        kept = both.drop_nulls()
        assert samples == len(kept)
        assert value == pytest.approx(slow_spearman(kept.to_series(0).to_list(), kept.to_series(1).to_list()))


def test_composition_counts_sources(workspace: Workspace) -> None:
    pool = read_stored(workspace, "sample_scores").collect()
    found = cells(workspace, "composition")
    for name, mine in (("(pool)", set(pool["sample_id"])), ("best", ids(workspace, "best"))):
        for source in set(pool["source"]):
            count = sum(s == source and i in mine for s, i in pool.select("source", "sample_id").iter_rows())
            assert found.get((name, source), (0.0, 0)) == (count / len(mine), count)


def test_a_target_that_is_ahead_of_another_brings_what_it_knows(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = read_stored(workspace, "sample_scores")
    settings = workspace.settings
    other = settings.targets[0].model_copy(update={"name": "other"})
    both = replace(workspace, settings=settings.model_copy(update={"targets": [settings.targets[0], other]}))
    ahead = {"tiny": scores.head(5), "other": scores}
    monkeypatch.setattr(manifest, "present_scores", lambda _, target: ahead[target.name])
    pool = scored_pool(both)
    assert len(pool) == 17
    assert pool.select(pl.col("source", "response_tokens", "n_steps").null_count()).row(0) == (0, 0, 0)


@pytest.mark.usefixtures("fresh_plots")
def test_labels_from_outside_are_shown_as_they_are() -> None:
    shares = {"a": {"$\\foo$": 0.5, "_hidden": 0.5}, "_b": {"$": 1.0}}
    assert "image/png" in stacked_bars(shares, "sources", "share")
    assert "image/png" in heat_map([[0.5]], ["$\\frac$"], ["_x"], "preference")


def test_a_score_that_a_target_does_not_have_yet_is_left_out(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = read_stored(workspace, "sample_scores").drop("grace")
    monkeypatch.setattr(manifest, "present_scores", lambda *_: scores)
    frame = comparison.compare(workspace)
    assert "grace" not in frame.filter(pl.col("comparison") == "rank_correlation")["left"].to_list()
    assert len(frame.filter(pl.col("comparison") == "overlap"))


def test_subsets_may_be_called_as_baselines_are() -> None:
    rows = [("baseline", left, right, value, 1) for left, right, value in BASELINES]
    frame = pl.DataFrame(rows, schema=["comparison", "left", "right", "value", "samples"], orient="row")
    values, lefts, rights = matrix(frame, "baseline")
    assert (lefts, rights) == (["random", "grace"], ["random", "longest"])
    assert values == [[1.0, 0.2], [0.3, 0.4]]


BASELINES = [("random", "random", 1.0), ("random", "longest", 0.2), ("grace", "random", 0.3), ("grace", "longest", 0.4)]


def test_matrices_have_both_halves(workspace: Workspace) -> None:
    values, rows_, columns = matrix(read_stored(workspace, "subset_comparison").collect(), "overlap")
    assert rows_ == columns == ["best", "longest_half"]
    assert values[0][1] == values[1][0]
    assert values[0][0] == values[1][1] == 1.0


def materialize(workspace: Workspace, key: dg.AssetKey, config: dict[str, Any]) -> dict[str, Any]:
    job = build_definitions(workspace).resolve_implicit_global_asset_job_def()
    run_config = {"ops": {key.to_python_identifier(): {"config": config}}} if config else None
    result = job.execute_in_process(asset_selection=[key], instance=instance_of(workspace), run_config=run_config)
    event = result.asset_materializations_for_node(key.to_python_identifier())[0]
    return {name: value.value for name, value in event.metadata.items()}


def test_the_report_has_its_pictures(workspace: Workspace) -> None:
    metadata = materialize(workspace, COMPARISON_KEY, {})
    for name in ("overlap", "baseline", "rank_correlation", "composition"):
        assert "data:image/png;base64," in metadata[name]


def test_a_what_if_from_the_launchpad(workspace: Workspace) -> None:
    config = {"subset": "best", "changes": ["alpha=0.1"], "budget": "3"}
    metadata = materialize(workspace, WHAT_IF_KEY, config)
    assert "| selected | 3 |" in metadata["difference"]
    assert "data:image/png;base64," in metadata["histogram"]


def test_a_second_run_compares_nothing_again(workspace: Workspace) -> None:
    path = workspace.warehouse.local("reports/subset_comparison.parquet")
    before = path.stat().st_mtime_ns
    run(workspace)
    assert path.stat().st_mtime_ns == before
