"""The rules of the house: one-way imports, light start-up, valid Dagster and pre-commit files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def lint(code: str, path: str) -> str:
    """What ruff says of code as if it stood at a path."""
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "--stdin-filename", path, "-"]
    return subprocess.run(command, input=code, capture_output=True, text=True, cwd=ROOT, check=False).stdout


@pytest.mark.parametrize(
    ("path", "statement", "allowed"),
    [
        ("resources/new.py", "import curation_assets", False),
        ("resources/new.py", "import dagster", False),
        ("resources/new.py", "import torch", False),
        ("resources/new.py", "import polars", True),
        ("resources/scoring/new.py", "import torch", True),
        ("resources/scoring/new.py", "import polars", False),
        ("resources/scoring/new.py", "import dagster", False),
        ("resources/scoring/new.py", "import resources.warehouse", False),
        ("resources/scoring/new.py", "import resources.scoring.samples", True),
        ("curation_assets/scores/new.py", "import dagster", False),
        ("curation_assets/scores/assets.py", "import dagster", True),
        ("curation_assets/scores/new.py", "import torch", False),
        ("curation_assets/scores/new.py", "import resources.warehouse", True),
    ],
)
def test_imports_run_one_way(path: str, statement: str, allowed: bool) -> None:
    found = lint(f'"""A module."""\n\n{statement}\n\nprint({statement.split()[1]})\n', path)
    assert ("TID25" not in found) == allowed, found


def loaded_after(statement: str) -> set[str]:
    """Top-level modules that are loaded after a statement in a fresh process."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(result.stdout.split())


def test_the_code_server_loads_no_model_library() -> None:
    assert not {"torch", "transformers", "peft", "matplotlib"} & loaded_after("import curation_assets.definitions")


def test_the_command_line_starts_light() -> None:
    assert not {"torch", "dagster", "polars"} & loaded_after("import curation_assets.cli")


def test_the_scoring_code_loads_nothing_of_the_data_stack() -> None:
    loaded = loaded_after("import resources.scoring.forward, resources.scoring.encoding, resources.scoring.loading")
    assert not {"dagster", "polars", "duckdb", "curation_assets"} & loaded


def test_every_module_says_what_belongs_there_and_stays_short() -> None:
    import ast

    for path in [*(ROOT / "curation_assets").rglob("*.py"), *(ROOT / "resources").rglob("*.py")]:
        text = path.read_text()
        assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
        assert text.count("\n") <= 400, f"{path} has more than 400 lines"


def test_our_dagster_yaml_is_valid(tmp_path: Path) -> None:
    import shutil

    import dagster as dg

    shutil.copy(ROOT / "curation_assets" / "templates" / "dagster.yaml", tmp_path / "dagster.yaml")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.get_concurrency_config().pool_config.default_pool_limit == 1
        assert not instance.telemetry_enabled
