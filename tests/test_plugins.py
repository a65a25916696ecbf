"""The worked examples of CONTRIBUTING.md, packaged, installed and used: one method, selector, format and export."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from curation_resources.plugins import PluginError, plugins

ROOT = Path(__file__).parent.parent

CONFIG = """\
corpus: {landing: ./landing}
warehouse: ./warehouse
targets: [{name: tiny, model: MODEL, warmup: none, signals: [likelihoods]}]
scores: [{name: settling, target: tiny, method: settling, weight: 0.5}]
subsets: [{name: odd, score: settling, selector: alternate, budget: {samples: 4}}]
engine: {device: cpu}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed plugin, to be put on the path."""
    source = tmp_path_factory.mktemp("plugin")
    (source / "example_plugin").mkdir()
    (source / "example_plugin" / "__init__.py").write_text("")
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name, code in re.findall(r"```python\n# (example_plugin/\w+\.py)\n(.*?)```", text, flags=re.DOTALL):
        (source / name).write_text(code)
    (project,) = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    (source / "pyproject.toml").write_text(project)
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return place


def curate(folder: Path, path: Path, *arguments: str) -> str:
    """Run a command with the plugin installed; gives what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(path), "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "200"}
    environment.pop("DAGSTER_HOME", None)
    command = [sys.executable, "-m", "curation_assets.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_a_plugin_adds_one_of_each(installed: Path, tiny_model: Path, tmp_path: Path) -> None:
    landing = tmp_path / "landing"
    landing.mkdir()
    steps = "\n".join(f"Step {k}: and {k} more things to count." for k in range(1, 40))
    rows = [{"riddle": f"What is {n} and {n}?", "solution": f"{steps}\nAnswer: {2 * n}", "level": n} for n in range(9)]
    (landing / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.utime(landing / "a.jsonl", (1e9, 1e9))
    (tmp_path / "curation.yaml").write_text(CONFIG.replace("MODEL", str(tiny_model)))
    curate(tmp_path, installed, "run")
    counted = curate(tmp_path, installed, "sql", "select count(*) as n, count(settling) as scored from sample_scores")
    assert re.search(r"\b9\b.*\b9\b", counted.replace("\n", " "))
    curate(tmp_path, installed, "table", "subset", "--to", "odd.jsonl")
    curate(tmp_path, installed, "table", "sample_scores", "--to", "scores.jsonl")
    chosen = [json.loads(line)["sample_id"] for line in (tmp_path / "odd.jsonl").read_text().splitlines()]
    scores = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    ranked = [row["sample_id"] for row in sorted(scores, key=lambda row: (-row["settling"], row["sample_id"]))]
    assert chosen[0] == ranked[0]
    assert set(chosen) == {ranked[0], ranked[-1], ranked[1], ranked[-2]}
    curate(tmp_path, installed, "release", "odd")
    curate(tmp_path, installed, "export", "odd@1", "--format", "text", "--to", "exported")
    exported = [json.loads(line) for line in (tmp_path / "exported" / "train.jsonl").read_text().splitlines()]
    assert [row["sample_id"] for row in exported] == chosen
    assert all(row["text"].startswith("What is ") for row in exported)


def test_a_plugin_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    information = tmp_path / "broken-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for value, message in (("no_such_module:X", "cannot be imported"), ("json:dumps", "It must name a Path")):
        (information / "entry_points.txt").write_text(f"[curation_assets.test]\nthing = {value}\n")
        with pytest.raises(PluginError, match=rf"'thing' \(curation_assets.test\) of broken .*{message}"):
            list(plugins("curation_assets.test", Path))
