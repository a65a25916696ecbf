"""Published recipes: `curate init --recipe` writes each for a folder, and it runs on the demo corpus to a release."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from curation_assets import tables
from curation_assets.cli.app import app
from curation_assets.demo.corpus import write_corpus
from curation_assets.demo.tour import MODEL
from curation_assets.operations.init_config import RECIPES, render_recipe
from curation_assets.subsets.select import stored_selection
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import landed, release_subset, run
from tests.resources.judge_server import Answer, JudgeServer, completions, judge_server

DOCS = Path(__file__).parents[2] / "docs" / "recipes"
COLUMNS = "prompt: prompt, response: response, answer: labels.right_answer, source: source, domain: domain"
"""The demo's rows hold their right answers among the labels, which nothing else reads."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("recipes")
    write_corpus(place / "all", n_prompts=20)
    (place / "landing").mkdir()
    for name in ("part-0.jsonl", "part-1.jsonl"):
        shutil.copy(place / "all" / name, place / "landing")
    shutil.copytree(MODEL, place / "model")
    rows = (place / "landing" / "part-0.jsonl").read_text().splitlines()
    for number, name in enumerate(("examples", "first_task", "second_task")):
        (place / f"{name}.jsonl").write_text(rows[5 * number] + "\n")
    return place


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[JudgeServer]:
    """An endpoint that rates everything 4, and solves every other prompt twice of 32 times, if it is a strong model."""
    right: dict[str, str] = {}
    for path in (folder / "landing").iterdir():
        for row in map(json.loads, path.read_text().splitlines()):
            right[row["prompt"]] = row["labels"]["right_answer"]
    hard = set(sorted(right)[::2])

    def respond(body: dict[str, Any]) -> Answer:
        prompt = body["messages"][-1]["content"]
        if prompt not in right:
            return completions(["4"])
        count = body.get("n", 1)
        solved = count if prompt not in hard else 2 if "R1" in body["model"] else 0
        replies = [f"Answer: {right[prompt]}"] * solved + ["Answer: -1"] * (count - solved)
        return completions(replies[:count])

    with judge_server(lambda _question: completions(["4"])) as started:
        started.respond = respond
        yield started


def written(folder: Path, recipe: str, server: JudgeServer) -> Workspace:
    config = folder / f"{recipe}.yaml"
    arguments = ["init", str(folder / "landing"), "--model", str(folder / "model"), "--recipe", recipe]
    result = CliRunner().invoke(app, [*arguments, "--to", str(config)])
    assert result.exit_code == 0, result.output
    assert ("set model and endpoint" in result.output) == ("endpoint" in config.read_text())
    text = re.sub(r"http://localhost:\d+/v1", server.url, config.read_text()).replace(", key_variable: JUDGE_KEY", "")
    config.write_text(text.replace("warehouse:", f"  columns: {{{COLUMNS}}}\nwarehouse:", 1))
    return Workspace.load(config)


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_recipe_runs_on_the_demo_corpus_to_a_release(recipe: str, folder: Path, server: JudgeServer) -> None:
    workspace = written(folder, recipe, server)
    assert landed(workspace)
    run(workspace)
    for subset in workspace.settings.subsets:
        chosen = workspace.warehouse.read_table(tables.subset_path(subset.name))
        selection = stored_selection(workspace, subset)
        assert len(chosen) == selection.funnel[-1].samples
        release, _ = release_subset(workspace, subset.name)
        assert release.manifest["rows"] == len(chosen) > 0
    if recipe in ("s1k", "limo"):
        # Only every other prompt is hard.
        funnel = [stage.samples for stage in selection.funnel]
        assert funnel[-1] < funnel[0]
    if recipe == "deita":
        assert set(chosen["score"]) == {16.0}


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_each_recipe_has_a_page_with_its_configuration(recipe: str) -> None:
    page = (DOCS / f"{recipe}.md").read_text()
    block = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert block is not None
    assert block[1] == render_recipe(recipe, "./landing", "./model")
    assert f"curate init landing --model MODEL --recipe {recipe}" in page
    index = (DOCS / "README.md").read_text()
    assert f"({recipe}.md)" in index


def test_an_unknown_recipe_is_refused(folder: Path) -> None:
    arguments = ["init", str(folder / "landing"), "--model", str(folder / "model"), "--recipe", "s1"]
    result = CliRunner().invoke(app, [*arguments, "--to", str(folder / "x.yaml")])
    assert result.exit_code == 1
    assert "there is no recipe 's1'; did you mean 's1k'?" in result.output


def test_the_help_names_every_recipe() -> None:
    shown = " ".join(CliRunner().invoke(app, ["init", "--help"]).output.replace("│", " ").split())
    assert [name for name in RECIPES if name not in shown] == []
