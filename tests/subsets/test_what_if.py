"""What-ifs: equal to what a run with the changed configuration selects, refused where they cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from curation_assets.cli.app import app
from curation_assets.config.settings import Budget
from curation_assets.methods.selectors.band import Band
from curation_assets.methods.selectors.per_prompt import PerPrompt
from curation_assets.methods.selectors.top import Top
from curation_assets.subsets.facts import Selection
from curation_assets.subsets.select import SelectionError, select
from curation_assets.subsets.stored_tables import read_stored
from curation_assets.subsets.what_if import changed, parse_budget, what_if
from curation_assets.tables import score_manifest_path
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import make_workspace, rows, run


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workspace:
    folder = tmp_path_factory.mktemp("what-if")
    # One sample is in both files: the pool has it once.
    shards = {"a.jsonl": rows(12), "b.jsonl": rows(9, start=11)}
    made = make_workspace(folder, tiny_model, shards, signals=("step_gradients", "likelihoods"))
    run(made)
    return made


def test_an_unchanged_subset_is_the_current_one_to_the_bit(workspace: Workspace) -> None:
    found = what_if(workspace, "best")
    assert found.rows.equals(read_stored(workspace, "subset").collect())
    assert (
        found.selection.content_digest == select(workspace, workspace.settings.subset("best")).selection.content_digest
    )
    difference = found.difference()
    assert (difference["added"], difference["removed"], difference["overlap_jaccard"]) == (0, 0, 1.0)


def test_a_preview_and_a_run_select_from_the_same_shards(workspace: Workspace) -> None:
    shards = sorted(workspace.warehouse.read_table(score_manifest_path("tiny"))["shard"])
    assert len(shards) > 1
    only = replace(workspace, only_shards=frozenset(shards[:1]))
    subset = workspace.settings.subset("best")
    preview, chosen = what_if(only, "best"), select(only, subset)
    assert preview.rows.equals(chosen.rows)
    assert preview.selection.facts() == chosen.selection.facts()
    assert preview.selection.summary.pool < select(workspace, subset).selection.summary.pool


@pytest.mark.parametrize("changes", [[], ["alpha=0.2"], ["method=grape"], ["selector={kind: random, seed: 3}"]])
def test_a_pool_of_more_rows_than_memory_holds_gives_the_same(workspace: Workspace, changes: list[str]) -> None:
    engine = workspace.settings.engine.model_copy(update={"rows_in_memory": 3})
    few = replace(workspace, settings=workspace.settings.model_copy(update={"engine": engine}))
    whole, parts = what_if(workspace, "best", changes, "30%"), what_if(few, "best", changes, "30%")
    assert parts.rows.equals(whole.rows)
    assert parts.selection.facts() == whole.selection.facts()
    assert parts.difference() == whole.difference()
    assert parts.sources().equals(whole.sources())


@pytest.mark.parametrize("alpha", [0.0, 0.31, 1.0])
def test_another_alpha_gives_what_a_run_with_it_selects(
    workspace: Workspace, tmp_path: Path, tiny_model: Path, alpha: float
) -> None:
    shards = {"a.jsonl": rows(12), "b.jsonl": rows(9, start=11)}
    other = make_workspace(tmp_path, tiny_model, shards, signals=("step_gradients", "likelihoods"), alpha=alpha)
    run(other)
    expected = read_stored(other, "subset").collect()
    assert what_if(workspace, "best", [f"alpha={alpha}"]).rows.equals(expected)


def test_another_method_has_its_own_selector_and_parameters(workspace: Workspace) -> None:
    found = what_if(workspace, "best", ["method=longest"], "5")
    pool = read_stored(workspace, "sample_scores").unique("sample_id").collect()
    longest = pool.sort(["response_tokens", "sample_id"], descending=[True, False])["sample_id"].head(5)
    assert found.rows["sample_id"].to_list() == longest.to_list()
    assert found.difference()["selected"] == 5
    likeliest = what_if(workspace, "best", ["method=perplexity", "selector={kind: band, band: low}"], "3")
    nll = read_stored(workspace, "likelihoods").sort("mean_nll").collect()["sample_id"].head(3)
    assert likeliest.rows["sample_id"].to_list() == nll.to_list()


def test_what_changed_is_said(workspace: Workspace) -> None:
    found = what_if(workspace, "best", ["alpha=0.1"], "3")
    before, after = read_stored(workspace, "subset").collect(), found.rows
    kept = set(before["sample_id"]) & set(after["sample_id"])
    difference = found.difference()
    assert (difference["selected"], difference["selected_now"]) == (3, len(before))
    assert difference["kept"] == len(kept)
    assert difference["overlap_jaccard"] == len(kept) / len(set(before["sample_id"]) | set(after["sample_id"]))
    assert found.sources().select(pl.col("now", "selected").sum()).row(0) == (len(before), 3)


def test_filters_and_strata_are_changed_too(workspace: Workspace) -> None:
    few = what_if(workspace, "best", ["filters.max_steps=3", "stratify=[source]"], "100%")
    assert few.samples.join(few.rows, on="sample_id", how="semi")["n_steps"].max() == 3
    assert few.selection.whole is False
    assert few.selection.facts()["eligible"] == len(few.rows)


def test_a_score_is_standardised_within_sources(workspace: Workspace) -> None:
    found = what_if(workspace, "best", ["standardise=source"])
    assert found.selection.facts()["standardised_sources"] == found.samples["source"].n_unique() == 2
    assert all("within its source" in reason for reason in found.rows["reason"])
    assert any(line.startswith("ranked by z of grace among") for line in found.remarks())
    # A run with the same setting selects the same rows, from the stored score.
    subset = workspace.settings.subset("best").model_copy(update={"standardise": "source"})
    chosen = select(workspace, subset)
    assert chosen.rows.equals(found.rows)
    assert chosen.selection.document()["standardised_sources"] == 2
    assert Selection.of_document(chosen.selection.document()).facts() == chosen.selection.facts()
    assert what_if(workspace, "best", ["standardise="]).rows.equals(what_if(workspace, "best").rows)


@pytest.mark.parametrize(
    ("changes", "advised"), [([], True), (["stratify=[source]"], False), (["standardise=source"], False)]
)
def test_advice_about_sources_ends_when_it_is_followed(workspace: Workspace, changes: list[str], advised: bool) -> None:
    found = what_if(workspace, "best", changes)
    summary = replace(found.selection.summary, variance_by_source=0.5)
    found = replace(found, selection=replace(found.selection, summary=summary))
    advice = [line for line in found.remarks() if "set stratify: [source] or standardise: source" in line]
    assert bool(advice) is advised


def test_a_preset_is_not_lost_against_a_default(workspace: Workspace) -> None:
    assert what_if(workspace, "best", ["preset=paper"]).score.min_steps == 8


def test_one_parameter_of_the_methods_selector_is_changed_alone(workspace: Workspace) -> None:
    found = what_if(workspace, "best", ["method=grape", "selector.k=2"])
    assert found.subset.selector == PerPrompt(k=2)
    assert what_if(workspace, "best", ["selector.order=lowest"]).subset.selector == Top(order="lowest")
    assert what_if(workspace, "best", ["method=grape", "selector.kind=band"]).subset.selector == Band()


NONE_LEFT = "filters (sources, min_steps of grace): none of 20 samples is left"


def test_remarks_say_why_nothing_or_everything_is_chosen(workspace: Workspace) -> None:
    assert what_if(workspace, "best").remarks() == ["differs from the source: " + reason for reason in UNFAITHFUL]
    found = what_if(workspace, "best", ["filters.sources=[nosuch]", "stratify="]).remarks()
    assert found[:2] == [
        "no sample in the pool has source 'nosuch'",
        "filters (sources, min_steps of grace): none of 20 samples is left",
    ]
    assert what_if(workspace, "best", [], "999999").remarks()[0].startswith("the budget is larger")


UNFAITHFUL = ["no warm-up: the paper measures after one, and its result drops from 106.6 to 89.6 without"]


def test_parameters_that_both_methods_have_stay(workspace: Workspace) -> None:
    subset, score = changed(workspace.settings, "best", ["min_steps=3", "method=grape"], None)
    assert (score.method, score.min_steps, subset.selector) == ("grape", 3, None)


def test_nothing_is_stored(workspace: Workspace) -> None:
    def files() -> list[str]:
        return sorted(str(path) for path in workspace.warehouse.root.rglob("*"))

    before = files()
    what_if(workspace, "best", ["alpha=0.9"])
    assert files() == before


@pytest.mark.parametrize(
    ("changes", "budget", "message"),
    [
        (["alfa=1"], None, "there is no parameter 'alfa'; did you mean 'alpha'? (of method grace"),
        (["alpha=2"], None, "alpha: input should be less than or equal to 1 (found 2)"),
        (["alpha"], None, "'alpha' is not a change. Write parameter=value"),
        (["alpha=[1"], None, "the value is not valid YAML"),
        (["method=magic"], None, "there is no method 'magic'; methods are"),
        (["selector.kind=per_prompt", "selector.k=0"], None, "selector"),
        (
            ["filters.colour=red"],
            None,
            "filters.colour: unknown key; known keys are sources, generators, exclude_generators, correct",
        ),
        (["filters.source=[a]"], None, "filters.source: unknown key; did you mean 'sources'?"),
        (
            ["selector.kind=nosuch"],
            None,
            "selector.kind: unknown kind 'nosuch'; known values are balanced, band, cluster_medoids, facility_location",
        ),
        (["target=foo"], None, "target: there is no target 'foo'; targets are tiny"),
        (["score=grce"], None, "score: there is no score 'grce'; did you mean 'grace'?"),
        (["score={combine: {grace: 0}}"], None, "score.combine: grace has weight 0 and would not count."),
        (["score={combine: {grace: 1}}", "alpha=1"], None, "there is no parameter 'alpha'"),
        (["from=nosuch"], None, "from: there is no subset 'nosuch'"),
        (["from=best"], None, "from: best from best is a circle."),
        (["method=rds_plus"], None, "validation: this key is missing; add it"),
        (["method=ifd"], None, "Add unconditional_likelihoods to its signals"),
        (["stratify=[sauce]"], None, "stratify.0: unknown value 'sauce'; did you mean 'source'?"),
        (["standardise=sauce"], None, "standardise: unknown value 'sauce'; did you mean 'source'?"),
        (["selector.kind=k_center"], None, "selector: k_center needs embeddings, which method grace does not have"),
        ([], "many", "'many' is not a budget. Write a fraction"),
        ([], "0%", "'0%' is not a budget"),
    ],
)
def test_what_cannot_be_is_refused_with_the_mend(
    workspace: Workspace, changes: list[str], budget: str | None, message: str
) -> None:
    with pytest.raises(SelectionError) as caught:
        what_if(workspace, "best", changes, budget)
    assert message in str(caught.value)


def test_a_signal_that_is_not_measured_is_named(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(3)})
    run(made)
    with pytest.raises(SelectionError, match="Add likelihoods to its signals"):
        what_if(made, "best", ["method=grape"])


def test_before_there_are_scores_it_says_what_to_do(tmp_path: Path, tiny_model: Path) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(3)})
    with pytest.raises(SelectionError, match=r"has no scores yet\. Run `curate run`"):
        what_if(made, "best")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7%", Budget(fraction=0.07)),
        ("0.5", Budget(fraction=0.5)),
        ("100 %", Budget(fraction=1.0)),
        ("1,000", Budget(samples=1000)),
        ("20 samples", Budget(samples=20)),
        ("500_000 tokens", Budget(tokens=500_000)),
    ],
)
def test_budgets_as_people_write_them(text: str, expected: Budget) -> None:
    assert parse_budget(text) == expected


def test_the_command(workspace: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "chosen.jsonl"
    config = ["--config", str(workspace.config_file)]
    result = CliRunner().invoke(app, ["select", "--set", "alpha=0.5", "--budget", "4", "--to", str(out), *config])
    assert result.exit_code == 0, result.output
    assert len([json.loads(line) for line in out.read_text().splitlines()]) == 4
    assert "kept" in result.output
    wrong = CliRunner().invoke(app, ["select", "none", *config])
    assert wrong.exit_code == 1
    assert "there is no subset 'none'" in wrong.output
