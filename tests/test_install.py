"""The package installs from its wheel, beside other projects, in the versions that constraints.txt names."""

from __future__ import annotations

import json
import os
import re
import site
import subprocess
import sys
import tomllib
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.constraints import LEFT_OUT

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def constraints() -> dict[str, Version]:
    """Versions of constraints.txt, by canonical name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pinned}


def requirements() -> list[Requirement]:
    """Every requirement of pyproject.toml but those on the project's own extras."""
    extras = PROJECT["optional-dependencies"].values()
    named = [Requirement(line) for line in [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]]
    return [requirement for requirement in named if requirement.name != PROJECT["name"]]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_constraints_hold_every_requirement(requirement: Requirement) -> None:
    pinned = constraints().get(canonicalize_name(requirement.name))
    assert pinned is not None, f"constraints.txt has no {requirement.name}: run make constraints"
    assert pinned in requirement.specifier, f"constraints.txt has {requirement.name} {pinned}, pyproject {requirement}"


def test_constraints_hold_what_requirements_require() -> None:
    """Also indirect dependencies are pinned: all that is installed here because of the requirements."""
    pinned, seen = constraints(), set()
    left = [canonicalize_name(requirement.name) for requirement in requirements()]
    while left:
        name = left.pop()
        if name in seen or name in LEFT_OUT:
            continue
        seen.add(name)
        assert name in pinned, f"constraints.txt has no {name}: run make constraints"
        needed = [Requirement(line) for line in metadata.requires(name) or ()]
        left += [canonicalize_name(own.name) for own in needed if own.marker is None or own.marker.evaluate()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without network from a copy of what git tracks."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "built", "."]
    subprocess.run(command, cwd=source, check=True)
    (built,) = (source / "built").glob("*.whl")
    return built


@pytest.mark.system
def test_the_wheel_works_beside_a_project_with_its_own_resources(wheel: Path, tmp_path: Path) -> None:
    """No checkout, a fresh environment, and a project whose package `resources` is not ours."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    (own,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    # The dependencies of this environment, without what makes our checkout importable in it.
    (own / "dependencies.pth").write_text(f"{site.getsitepackages()[0]}\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    project = tmp_path / "project"
    (project / "resources").mkdir(parents=True)
    (project / "resources" / "__init__.py").write_text("OURS = True\n")
    environment = {**os.environ, "PYTHONPATH": str(project), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    code = (
        "import resources, curation_assets, curation_resources\n"
        "assert resources.OURS\n"
        "print(curation_assets.__file__, curation_resources.__file__)"
    )
    shown = subprocess.run(
        [python, "-c", code], cwd=project, env=environment, capture_output=True, text=True, check=True
    )
    assert [path.startswith(str(own)) for path in shown.stdout.split()] == [True, True]
    done = subprocess.run(
        [python.parent / "curate", "demo", "--folder", "demo"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["auroc"] >= 0.8


def test_the_wheel_holds_only_our_packages(wheel: Path) -> None:
    import zipfile

    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not re.fullmatch(r"curation_assets-.*\.dist-info", top)} == {
        "curation_assets",
        "curation_resources",
    }
    for needed in ("demo/model/model.safetensors", "defs/templates/dagster.yaml", "releases/page/page.html"):
        assert f"curation_assets/{needed}" in names
