"""Every command in README and docs runs: pages in order, in a folder as their reader has it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import jsonschema
import pytest

from curation_assets.config.config_file import json_schema, load_settings, parse_settings
from curation_assets.config.corpus_settings import Corpus
from curation_assets.config.reference import reference
from curation_assets.config.settings import Settings
from curation_assets.corpus.formats import FORMATS, detect
from curation_assets.corpus.reading import read_shard
from tests.ui import serving

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "docs" / "recipes").glob("*.md"))
BIN = Path(sys.executable).parent


def commands(page: Path) -> list[str]:
    """The lines of a page's `sh` blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `make demo` has been run, and that looks like a user's: landing and model in it."""
    place = tmp_path_factory.mktemp("user")
    environment = os.environ | {"XDG_CACHE_HOME": str(place / "cache")}
    environment.pop("DAGSTER_HOME", None)
    run = [str(BIN / "curate"), "demo", "--folder", "demo"]
    first, second = (
        subprocess.run(run, cwd=place, env=environment, capture_output=True, text=True, check=True) for _ in range(2)
    )
    (place / "first.json").write_text(first.stdout.splitlines()[-1])
    (place / "second.json").write_text(second.stdout.splitlines()[-1])
    shutil.copytree(place / "demo" / "landing", place / "landing")
    shutil.copytree(place / "demo" / "model", place / "model")
    return place


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_separates_flawed_from_sound_and_repeats_itself(demo_folder: Path) -> None:
    first = json.loads((demo_folder / "first.json").read_text())
    second = json.loads((demo_folder / "second.json").read_text())
    assert first["auroc"] >= 0.80
    assert first["flawed_share_subset"] < first["flawed_share_pool"] / 2
    assert first["auroc_by_kind"]["truncated"] is None
    assert first["tokens_measured"] > 0
    assert second["tokens_measured"] == 0
    assert second["content_digest"] == first["content_digest"]
    assert second["release"] == first["release"]
    assert Path(first["release"]).is_dir()


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page: Path, demo_folder: Path) -> None:
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "100"}
    environment.pop("DAGSTER_HOME", None)
    for command in commands(page):
        if command.startswith("make "):
            # What the target runs, not the target: the demo has been run, and this is the test run.
            shown = subprocess.run(["make", "-n", *command.split()[1:]], cwd=ROOT, capture_output=True, check=False)
            assert shown.returncode == 0, command
        elif command.startswith("pip install"):
            continue  # the installation is what this test runs in
        else:
            result = subprocess.run(
                command, shell=True, cwd=demo_folder, env=environment, capture_output=True, text=True, check=False
            )
            assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_ui_serves_the_demo(demo_folder: Path) -> None:
    # That it carries files through: tests/pipeline/test_daemon.py.
    with serving(demo_folder / "demo" / "curation.yaml", demo_folder / "ui.log") as ui:
        shown = _asset_keys(ui.address, time.monotonic() + 180)
    assert shown >= {"raw_corpus", "tiny/step_gradients", "releases/grace_20"}


def _asset_keys(address: str, deadline: float) -> set[str]:
    """Keys of the materialized assets, as the web server gives them to the browser."""
    query = {"query": "{ assetNodes { assetKey { path } assetMaterializations(limit: 1) { runId } } }"}
    request = urllib.request.Request(
        f"{address}/graphql", json.dumps(query).encode(), {"Content-Type": "application/json"}
    )
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                nodes = json.load(answer)["data"]["assetNodes"]
                if nodes:
                    return {"/".join(n["assetKey"]["path"]) for n in nodes if n["assetMaterializations"]}
        except OSError:
            pass  # not up yet
        time.sleep(1)
    raise AssertionError("the web server did not come up")


def test_the_configuration_page_loads_and_names_every_key() -> None:
    page = ROOT / "docs" / "configuration.md"
    (block,) = re.findall(r"```yaml\n(.*?)```", page.read_text(), flags=re.DOTALL)
    settings = parse_settings(block.encode(), page)
    jsonschema.validate(settings.model_dump(mode="json"), json_schema())
    names = {
        name
        for section in [Settings.model_json_schema(), *Settings.model_json_schema()["$defs"].values()]
        for name in section["properties"]
    }
    missing = {name for name in names if not re.search(rf"\b{name}:", block)}
    assert missing == set()


def test_the_reference_is_that_of_the_schema() -> None:
    page = ROOT / "docs" / "reference.md"
    assert page.read_text() == reference(), "curate schema --markdown --to docs/reference.md"
    for section in [Settings.model_json_schema(), *Settings.model_json_schema()["$defs"].values()]:
        for name in section["properties"]:
            assert f"| `{name}` |" in page.read_text()


def blocks(page: str, kind: str) -> list[str]:
    """The blocks of a page in a language."""
    return re.findall(rf"```{kind}\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.DOTALL)


def test_the_configurations_of_methods_load() -> None:
    found = [parse_settings(block.encode(), Path("choosing.md")) for block in blocks("choosing.md", "yaml")]
    assert [settings.scores[0].method for settings in found] == [
        "grape",
        "grape",
        "less",
        "tagcos",
        "in_run",
        "difficulty",
    ]


def test_the_chain_of_recipes_loads() -> None:
    (block,) = blocks("recipes/README.md", "yaml")
    settings = parse_settings(block.encode(), Path("README.md"))
    assert [subset.name for subset in settings.chain(settings.subset("best"))] == ["solid", "best"]


def test_every_format_has_an_example_that_is_read(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "your-corpus.md").read_text()
    examples = dict(re.findall(r"### (\w+)\n\n```json\n(.*?)\n```", page, flags=re.DOTALL))
    assert set(examples) == set(FORMATS)
    for name, row in examples.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text(row + "\n")
        read = read_shard(path, name, path.name, Corpus(landing=str(tmp_path)))
        assert read.rejected.is_empty(), name
        assert detect([json.loads(row)]) == name
        assert len(read.accepted) == (2 if name in ("prompt_response", "preference") else 1)
        assert "5" in read.accepted["response"][0]


def test_the_example_of_deploy_loads() -> None:
    settings = load_settings(ROOT / "deploy" / "curation.yaml")
    assert settings.score("grace").min_steps == 8


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, *RECIPES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "deploy" / "README.md"]:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_promise_names_tests_that_are_there() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    named = re.findall(r"`(tests/[^`]*)`", text)
    assert named
    for place in named:
        assert (ROOT / place).exists(), place
    rows = [line for line in text.splitlines() if line.startswith("| **")]
    assert all("`tests/" in row for row in rows)
