"""Commands of docs/deploying.md, deploy/README.md and the batch scripts: programs, options and files that there are.

What needs a cluster cannot be run here, so these pages have no `sh` blocks, which tests/test_docs.py runs.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import botocore.session  # type: ignore[import-untyped]
import pytest
import typer.main

from curation_assets.cli.app import app

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "docs" / "deploying.md", ROOT / "deploy" / "README.md"]
SCRIPTS = sorted((ROOT / "deploy" / "slurm").glob("*.sbatch"))
LATER = {"score", "--units", "--until"}
"""What the batch scripts call and this version may lack: then the test is skipped, with this as the reason."""


def indented(page: Path) -> list[str]:
    """Lines of a page's indented blocks that are commands."""
    lines = [line.strip() for line in page.read_text().splitlines() if line.startswith("    ")]
    return [line.split(" # ")[0].strip() for line in lines if re.match(r"(\w+=\S+ )*[a-z./]+[a-z] ", line)]


def curate_commands() -> list[str]:
    """Everything that is called as `curate ...` in pages and scripts."""
    found = [line for page in PAGES for line in indented(page) if line.startswith("curate ")]
    found += [
        one for page in PAGES for one in re.findall(r"`(?:docker compose exec code )?(curate [a-z][^`]*)`", _read(page))
    ]
    found += [
        line.removeprefix("forward ")
        for script in SCRIPTS
        for line in _read(script).splitlines()
        if "forward curate" in line
    ]
    return sorted(set(found))


def _read(path: Path) -> str:
    return path.read_text()


@pytest.mark.parametrize("line", curate_commands())
def test_curate_has_the_command(line: str) -> None:
    _, name, *words = shlex.split(line)
    root = typer.main.get_command(app)
    known: dict[str, Any] = vars(root)["commands"]
    options = {word for word in words if word.startswith("--")}
    has = {option for parameter in known[name].params for option in parameter.opts} if name in known else set()
    lacking = ({name} - set(known)) | (options - has)
    if lacking and lacking <= LATER:
        pytest.skip(f"curate has no {', '.join(sorted(lacking))} yet")
    assert not lacking


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_command_names_is_there(page: Path) -> None:
    commands = indented(page)
    assert len(commands) > 3
    named = {place for line in commands for place in re.findall(r"deploy/[\w./-]+[\w]", line)}
    for place in named:
        assert (ROOT / place).exists(), place
    inline = set(re.findall(r"`((?:compose|kubernetes|ecs|slurm|iam)/[\w./-]*)`", page.read_text()))
    for place in inline:
        assert (ROOT / "deploy" / place).exists() or (ROOT / "deploy" / "ecs" / place).exists(), place


def test_every_file_of_deploy_is_told_of() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for entry in sorted((ROOT / "deploy").iterdir()):
        if entry.name != "README.md":
            assert f"`{entry.name}{'/' if entry.is_dir() else ''}`" in text, entry.name


def test_aws_has_the_commands() -> None:
    session = botocore.session.get_session()
    lines = [line for line in indented(PAGES[0]) if line.startswith("aws ")]
    assert lines
    for line in lines:
        _, service, command, *words = shlex.split(line)
        operation = "".join(part.title() for part in command.split("-"))
        shape = session.get_service_model(service).operation_model(operation).input_shape
        own = {re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower() for name in shape.members}
        options = {word.removeprefix("--") for word in words if word.startswith("--")} - {"cli-input-json"}
        assert options <= own, line
