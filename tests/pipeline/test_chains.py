"""Chains of subsets, with two targets, in a whole pipeline: what is selected again, recorded, shown and reproduced."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from curation_assets import tables
from curation_assets.cli.app import app
from curation_assets.definitions import build_definitions
from curation_assets.evaluation.arms import configured_evaluation, runs_of
from curation_assets.operations.gc import find_unused
from curation_assets.operations.stages import Survey, stage_named
from curation_assets.releases.changes import funnels
from curation_assets.releases.reproduce import reproduce
from curation_assets.releases.trace_page import page_text
from curation_assets.releases.traces import subset_traces
from curation_assets.subsets.select import (
    OutdatedScoresError,
    SelectionError,
    select,
    stored_selection,
    subset_due,
    write_subset,
)
from curation_assets.subsets.what_if import what_if
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import make_workspace, release_subset, rows, run, write_shard

SUBSETS = """\
subsets:
  - {name: last, from: middle, score: grace, budget: {samples: 3}}
  - name: middle
    from: best
    score: {combine: {likely: 2, grace: 1}, by: rank}
    budget: {fraction: 0.5}
  - name: best
    score: grace
    budget: {fraction: 1}
    filters: {scores: [{score: likely, top: 0.8, within: source}]}
"""
ORDER = ["best", "middle", "last"]


@pytest.fixture
def workspace(tmp_path: Path, tiny_model: Path) -> Workspace:
    shards = {"a.jsonl": rows(14), "b.jsonl": rows(6, start=12)}
    made = make_workspace(tmp_path, tiny_model, shards)
    text = re.sub(r"subsets:\n.*\n", SUBSETS, made.config_file.read_text())
    other = f"  - {{name: other, model: {tiny_model}, warmup: none, signals: [likelihoods]}}\nscores:\n"
    text = text.replace("scores:\n", other + "  - {name: likely, target: other, method: grape}\n", 1)
    made.config_file.write_text(text)
    found = Workspace.load(made.config_file)
    run(found)
    return found


def ids(workspace: Workspace, name: str) -> set[str]:
    return set(workspace.warehouse.read_table(tables.subset_path(name))["sample_id"])


def edited(workspace: Workspace, old: str, new: str) -> Workspace:
    text = workspace.config_file.read_text()
    assert old in text
    workspace.config_file.write_text(text.replace(old, new))
    return Workspace.load(workspace.config_file)


def test_each_stage_chooses_from_the_one_before_it(workspace: Workspace) -> None:
    best, middle, last = (ids(workspace, name) for name in ORDER)
    assert last < middle < best
    assert len(last) == 3
    assert len(middle) == -(-len(best) // 2)
    funnel = stored_selection(workspace, workspace.settings.subset("last")).funnel
    assert [(stage.subset, stage.name) for stage in funnel] == [
        ("best", "pool"),
        ("best", "likely: top 80% within source"),
        ("best", "selected"),
        ("middle", "selected"),
        ("last", "selected"),
    ]
    assert [stage.samples for stage in funnel[2:]] == [len(best), len(middle), 3]
    assert run(workspace).subsets == []


def test_a_change_of_the_first_stage_selects_all_again(workspace: Workspace) -> None:
    changed = edited(workspace, "top: 0.8", "top: 0.5")
    assert [subset_due(changed, changed.settings.subset(name)) for name in ORDER] == [True] * 3
    with pytest.raises(OutdatedScoresError, match="subset last is chosen from best, which is not up to date"):
        write_subset(changed, changed.settings.subset("last"))
    before = ids(changed, "best")
    assert run(changed).subsets == ORDER
    assert ids(changed, "last") <= ids(changed, "middle") <= ids(changed, "best")
    assert ids(changed, "best") < before


def test_a_change_that_leaves_the_rows_as_they_are_ends_there(workspace: Workspace) -> None:
    # The budget takes all of them, with and without it.
    changed = edited(workspace, "score: grace\n    budget: {fraction: 1}", "score: grace\n    budget: {samples: 99}")
    assert run(changed).subsets == ["best"]


def test_new_rows_go_through_all_stages(workspace: Workspace) -> None:
    write_shard(workspace.folder / "landing" / "c.jsonl", rows(9, start=40))
    assert run(workspace).subsets == ORDER


def test_the_sensor_waits_for_the_stages_before(workspace: Workspace) -> None:
    changed = edited(workspace, "top: 0.8", "top: 0.5")
    survey, stage = Survey(changed, {}), stage_named("subset")
    blocked = {name: survey.blocked(stage, changed.settings.subset(name)) for name in ORDER}
    assert blocked == {"best": False, "middle": True, "last": True}


def test_the_asset_graph_shows_the_chain(workspace: Workspace) -> None:
    graph = build_definitions(workspace).resolve_asset_graph()
    parents = {
        key.path[-1]: sorted("/".join(parent.path) for parent in graph.get(key).parent_keys)
        for key in graph.get_all_asset_keys()
        if key.path[0] == "subsets"
    }
    assert parents == {
        "best": ["other/score_manifest", "tiny/score_manifest"],
        "middle": ["other/score_manifest", "subsets/best", "tiny/score_manifest"],
        "last": ["subsets/middle", "tiny/score_manifest"],
    }


def test_a_preview_is_what_a_run_selects(workspace: Workspace) -> None:
    for name in ORDER:
        assert what_if(workspace, name).rows.equals(workspace.warehouse.read_table(tables.subset_path(name)))
    found = what_if(workspace, "last", ["from=null", "alpha=0.1"], "4", ["likely top 50%"])
    changed = edited(
        workspace,
        "{name: last, from: middle, score: grace, budget: {samples: 3}}",
        "{name: last, score: grace, budget: {samples: 4}, filters: {scores: [{score: likely, top: 0.5}]}}",
    )
    changed = edited(changed, "alpha: 0.7", "alpha: 0.1")
    run(changed)
    assert found.rows.equals(changed.warehouse.read_table(tables.subset_path("last")))


def test_a_preview_selects_outdated_stages_without_storing_them(workspace: Workspace) -> None:
    changed = edited(workspace, "top: 0.8", "top: 0.5")
    stored = ids(changed, "best")
    found = what_if(changed, "last")
    assert ids(changed, "best") == stored
    run(changed)
    assert found.rows.equals(changed.warehouse.read_table(tables.subset_path("last")))


def test_a_combination_is_reproduced_whatever_the_order_of_its_names(workspace: Workspace) -> None:
    # A manifest sorts its keys; the configuration names `likely` first.
    release, _ = release_subset(workspace, "middle")
    assert release.manifest["parameters"]["score"]["name"] == "rank(grace + 2 likely)"
    assert reproduce(workspace, release.manifest, f"{tables.release_dir('middle')}/1").identical
    assert run(edited(workspace, "{likely: 2, grace: 1}", "{grace: 1, likely: 2}")).subsets == []


def test_a_change_before_that_keeps_the_rows_is_shown_by_the_funnel(workspace: Workspace) -> None:
    changed = edited(workspace, "within: source}]", "within: source}, {score: grace, at_least: -9}]")
    assert run(changed).subsets == ["best"]
    funnel = stored_selection(changed, changed.settings.subset("last")).funnel
    assert [stage.name for stage in funnel[:4]] == ["pool", "likely: top 80% within source", "grace >= -9", "selected"]
    assert funnel[-1].subset == "last"
    release, _ = release_subset(changed, "last")
    assert release.manifest["funnel"][2]["name"] == "grace >= -9"


def test_collecting_garbage_keeps_what_a_release_of_a_chain_was_made_from(workspace: Workspace) -> None:
    release, _ = release_subset(workspace, "last")
    text = workspace.config_file.read_text()
    text = re.sub(r"  - \{name: other, model.*\n", "", text)
    text = re.sub(r"  - \{name: likely, target.*\n", "", text)
    text = re.sub(r"subsets:\n(?:  .*\n)+", "", text)
    workspace.config_file.write_text(text)
    alone = Workspace.load(workspace.config_file)
    removed = [str(find) for find in find_unused(alone, 0.0, clock=2e10) if find.remove]
    assert not [find for find in removed if "other" in find or "best" in find or "middle" in find]
    assert reproduce(alone, release.manifest, f"{tables.release_dir('last')}/1").identical


def test_a_product_names_its_subset(workspace: Workspace) -> None:
    changed = edited(workspace, "by: rank", "by: product")
    with pytest.raises(SelectionError, match=r"subset middle: grace \* likely\^2: \w+ is not positive for"):
        select(changed, changed.settings.subset("middle"))


def test_a_release_records_the_chain_and_is_reproduced(workspace: Workspace) -> None:
    release, _ = release_subset(workspace, "last")
    manifest = release.manifest
    assert [stage["samples"] for stage in manifest["funnel"]][-1] == 3
    assert list(manifest["upstream"]["subsets"]) == ["best", "middle"]
    assert sorted(manifest["upstream"]["targets"]) == ["other", "tiny"]
    assert manifest["upstream"]["targets"]["other"]["scores"] == ["likely"]
    card = workspace.warehouse.storage.read(f"{tables.release_dir('last')}/1/README.md").decode()
    assert "| best | likely: top 80% within source |" in card
    assert reproduce(workspace, manifest, f"{tables.release_dir('last')}/1").identical
    # Also when the first stage has been selected otherwise since.
    changed = edited(workspace, "top: 0.8", "top: 0.5")
    run(changed)
    assert reproduce(changed, manifest, f"{tables.release_dir('last')}/1").identical
    again, _ = release_subset(changed, "last")
    stages = {name: (was, now) for name, was, now in funnels(manifest, again.manifest)}
    assert stages["best: likely: top 80% within source"][1] is None
    assert stages["best: likely: top 50% within source"][0] is None
    assert stages["last: selected"] == (3, 3)


def test_the_page_shows_the_funnel_and_what_each_threshold_dropped(workspace: Workspace) -> None:
    best = subset_traces(workspace, workspace.settings.subset("best"))
    dropped = best.rows.filter(pl.col("rank").is_null())["why"].to_list()
    assert dropped
    assert set(dropped) == {"not eligible: it does not pass likely: top 80% within source"}
    last = subset_traces(workspace, workspace.settings.subset("last"))
    assert set(last.rows["sample_id"]) == ids(workspace, "middle")
    page = page_text(last)
    assert "likely: top 80% within source" in page
    assert "<h2>Funnel</h2>" in page
    middle = subset_traces(workspace, workspace.settings.subset("middle"))
    # Not chosen, but with their combined score.
    assert middle.rows["score"].null_count() == 0
    assert middle.rows["rank"].null_count() > 0


def test_baselines_are_drawn_from_what_a_subset_could_choose_from(workspace: Workspace) -> None:
    held_out = workspace.folder / "held_out.jsonl"
    held_out.write_text(json.dumps({"prompt": "1 + 1?", "answer": "2"}) + "\n")
    text = workspace.config_file.read_text()
    text += "evaluation: {benchmarks: [{name: b, path: ./held_out.jsonl}], seeds: [0, 1, 2]}\n"
    workspace.config_file.write_text(text)
    found = Workspace.load(workspace.config_file)
    runs = runs_of(found, configured_evaluation(found, None, ["middle", "last"]))
    drawn = {run.arm: set(run.sample_ids) for run in runs if run.kind == "baseline" and run.seed == 1}
    assert set(drawn) == {f"random ({len(ids(found, 'middle'))}) as middle", "random (3) as last"}
    assert drawn["random (3) as last"] < ids(found, "middle")
    assert {run.random for run in runs if run.arm == "last"} == {"random (3) as last"}
    # Everything that passes its threshold: any draw of as many is the same.
    whole = runs_of(found, configured_evaluation(found, None, ["best"]))
    assert not [run for run in whole if run.kind == "baseline"]


def test_the_command_previews_and_explains(workspace: Workspace) -> None:
    def say(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["select", *arguments, "--config", str(workspace.config_file)])
        return result.output

    shown = say("last", "--from", "pool", "--where", "likely top 50% within source", "--budget", "2")
    assert "likely: top 50% within source" in shown
    assert "likely >= 1: none of" in say("last", "--where", "likely >= 1")
    assert "is not a condition. Write SCORE >= NUMBER" in say("last", "--where", "likely > 1")
    assert "there is no score 'likly'; did you mean 'likely'?" in say("last", "--where", "likly >= 1")
    assert "is not positive for" in say("middle", "--set", "score.by=product")


def test_more_random_draws_than_seeds(workspace: Workspace) -> None:
    held_out = workspace.folder / "held_out.jsonl"
    held_out.write_text(json.dumps({"prompt": "1 + 1?", "answer": "2"}) + "\n")
    text = workspace.config_file.read_text()
    text += "evaluation: {benchmarks: [{name: b, path: ./held_out.jsonl}], seeds: [1], random_draws: 3}\n"
    workspace.config_file.write_text(text)
    found = Workspace.load(workspace.config_file)
    runs = runs_of(found, configured_evaluation(found, None, ["last"]))
    assert sorted(run.seed for run in runs if run.kind == "baseline" and run.seed is not None) == [0, 1, 2]
    assert [run.seed for run in runs if run.arm == "last"] == [1]
    drawn = {run.seed: run.sample_ids for run in runs if run.kind == "baseline"}
    assert len(set(drawn.values())) > 1
