"""deploy/Dockerfile and the code server that the image starts: linted, and held against the package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import dagster as dg
import pytest

from curation_assets.defs.instance import open_instance
from curation_assets.defs.partitions import STAGE_TAG
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import make_workspace, rows

ROOT = Path(__file__).parent.parent.parent
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
BIN = Path(sys.executable).parent


def lint(text: str) -> list[str]:
    """Codes of what hadolint says, down to style."""
    command = [str(BIN / "hadolint"), "--format", "json", "--failure-threshold", "style", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return [finding["code"] for finding in json.loads(done.stdout)]


def test_hadolint_has_nothing_to_say() -> None:
    assert lint(DOCKERFILE.read_text()) == []


def test_hadolint_would_say_so() -> None:
    text = DOCKERFILE.read_text().replace("USER 10001:10001\n", "USER root\nRUN cd /tmp\n")
    assert {"DL3002", "DL3003"} <= set(lint(text))


def test_the_image_installs_what_the_package_asks_for() -> None:
    text = DOCKERFILE.read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"ARG EXTRAS=(\S+)", text)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert {"ui", "s3", "postgres", "kubernetes", "ray", "train"} <= set(extras.split(","))
    torch = set(re.findall(r'"(torch[^"]*)"', text))
    assert torch == {one for one in project["dependencies"] if one.startswith("torch")}
    assert set(re.findall(r"FROM python AS torch-(\w+)", text)) == {"cpu", "cuda"}
    (python,) = re.findall(r"ARG PYTHON=python:(\d+\.\d+)-", text)
    assert project["requires-python"] == f">={python}"


def test_nothing_but_the_package_goes_into_the_image() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        name
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), flags=re.MULTILINE)
        for name in sources.split()
    }
    assert copied == allowed
    for name in allowed:
        assert (ROOT / name).exists()


def test_a_new_code_server_says_what_the_last_one_left(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(1)})
    for name, value in {"CURATION_CONFIG": str(made.config_file), "DAGSTER_HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)

    @dg.job
    def left() -> None:
        pass

    with open_instance(Workspace.load()) as instance:
        run = instance.create_run_for_job(left, tags={STAGE_TAG: "x"}, status=dg.DagsterRunStatus.STARTED)
    command = [sys.executable, "-m", "curation_assets.defs.code_server", "--help"]
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "code-server start" in done.stdout
    with open_instance(Workspace.load()) as instance:
        found = instance.get_run_by_id(run.run_id)
        assert found is not None
        assert found.status == dg.DagsterRunStatus.FAILURE
