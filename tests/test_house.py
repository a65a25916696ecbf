"""The rules of the house: one-way imports, light start-up, valid Dagster and pre-commit files."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from tests.house import circles, longest_chain, measure

ROOT = Path(__file__).parent.parent


def lint(code: str, path: str) -> str:
    """Return ruff's findings for code as if it stood at a path."""
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "--stdin-filename", path, "-"]
    return subprocess.run(command, input=code, capture_output=True, text=True, cwd=ROOT, check=False).stdout


@pytest.mark.parametrize(
    ("path", "statement", "allowed"),
    [
        ("resources/curation_resources/new.py", "import torch", False),
        ("resources/curation_resources/new.py", "import polars", True),
        ("resources/curation_resources/storage/new.py", "import boto3", False),
        ("resources/curation_resources/storage/new.py", "import obstore", True),
        ("resources/curation_resources/storage/new.py", "import obstore.auth.boto3", False),
        ("resources/curation_resources/scoring/new.py", "import torch", True),
        ("curation_assets/methods/new.py", "import torch", False),
        ("curation_assets/methods/new.py", "import curation_resources.storage.warehouse", True),
    ],
)
def test_slow_imports_stay_inside_functions(path: str, statement: str, allowed: bool) -> None:
    found = lint(f'"""A module."""\n\n{statement}\n\nprint({statement.split()[1]})\n', path)
    assert ("TID25" not in found) == allowed, found


@pytest.fixture(scope="module")
def copied_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of both packages and of pyproject.toml, to which a bad import can be added."""
    folder = tmp_path_factory.mktemp("house")
    for name in ("curation_assets", "resources"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "model"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def broken_contracts(folder: Path) -> str:
    """Return what import-linter prints for the packages in a folder; empty if all contracts hold."""
    program = str(Path(sys.executable).parent / "lint-imports")
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{folder / 'resources'}"}
    done = subprocess.run(
        [program, "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode else ""


def test_imports_go_down_the_layers(copied_sources: Path) -> None:
    assert broken_contracts(copied_sources) == ""


@pytest.mark.parametrize(
    ("path", "statement", "contract"),
    [
        ("curation_assets/methods/new.py", "import curation_assets.config.settings", "Layers BROKEN"),
        (
            "curation_assets/methods/new.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import curation_assets.config.settings",
            "Layers BROKEN",
        ),
        ("curation_assets/subsets/new.py", "import dagster", "Dagster only in"),
        ("resources/curation_resources/new.py", "import dagster", "Dagster only in"),
        ("resources/curation_resources/new.py", "import curation_assets", "curation_resources imports nothing"),
        ("resources/curation_resources/scoring/new.py", "import polars", "bare GPU machine"),
        ("resources/curation_resources/scoring/new.py", "import curation_resources.storage.warehouse", "bare GPU"),
    ],
)
def test_an_upward_import_is_found(copied_sources: Path, path: str, statement: str, contract: str) -> None:
    added = copied_sources / path
    added.write_text(f'"""A module."""\n\n{statement}\n')
    try:
        assert contract in broken_contracts(copied_sources)
    finally:
        added.unlink()


def loaded_after(statement: str) -> set[str]:
    """Return the top-level modules that a statement loads in a fresh process."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(result.stdout.split())


def test_the_code_server_loads_no_model_library() -> None:
    assert not {"torch", "transformers", "peft", "matplotlib"} & loaded_after("import curation_assets.definitions")


def test_the_command_line_starts_light() -> None:
    assert not {"torch", "dagster", "polars"} & loaded_after("import curation_assets.cli.app")


def test_the_scoring_code_loads_nothing_of_the_data_stack() -> None:
    loaded = loaded_after("from curation_resources.scoring import encoding, forward, loading")
    assert not {"dagster", "polars", "duckdb", "curation_assets"} & loaded


def test_every_module_opens_with_a_docstring() -> None:
    for path in [*(ROOT / "curation_assets").rglob("*.py"), *(ROOT / "resources").rglob("*.py")]:
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_one_module_uses_private_apis() -> None:
    """Dagster's, in an adapter whose test fails if an upgrade changes it; Polars' are not used at all."""
    private = re.compile(r"^\s*(from|import) (dagster|polars)\S*\._", re.MULTILINE)
    files = [*(ROOT / "curation_assets").rglob("*.py"), *(ROOT / "resources").rglob("*.py")]
    found = [path.name for path in files if private.search(path.read_text())]
    assert found == ["partition_metadata.py"]


def test_our_dagster_yaml_is_valid(tmp_path: Path) -> None:
    shutil.copy(ROOT / "curation_assets" / "defs" / "templates" / "dagster.yaml", tmp_path / "dagster.yaml")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.get_concurrency_config().pool_config.default_pool_limit == 1
        assert not instance.telemetry_enabled


def test_the_house_keeps_its_measures() -> None:
    """Figures that a change must not worsen; `python -m tests.house` prints all of them."""
    figures = measure()
    assert figures["circles"] == figures["upward_imports"] == 0
    assert figures["top_modules"] <= 3
    assert figures["top_folders"] <= 15
    assert figures["files_for_new"] == {"method": 2, "selector": 2, "format": 4, "export": 2, "signal": 3}


def test_the_measures_can_fail() -> None:
    looped = {"a": frozenset({"b"}), "b": frozenset({"c"}), "c": frozenset({"a"}), "d": frozenset({"a"})}
    assert circles(looped) == [["a", "b", "c"]]
    assert len(longest_chain(looped)) == 2
    chain = {"a": frozenset({"b", "c"}), "b": frozenset({"c"}), "c": frozenset[str]()}
    assert circles(chain) == []
    assert longest_chain(chain) == ["a", "b", "c"]
