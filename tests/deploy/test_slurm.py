"""deploy/slurm: shellcheck, and the three steps on a real Slurm of one node: with a stand-in for `curate`, and it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from curation_assets.workspace.workspace import Workspace
from tests.deploy.slurm import Cluster, serving_slurm
from tests.pipeline.workspaces import make_workspace, rows, run, subset_ids

pytestmark = pytest.mark.system

ROOT = Path(__file__).parent.parent.parent
SLURM = ROOT / "deploy" / "slurm"
SCRIPTS = [*sorted(SLURM.glob("*.sh")), *sorted(SLURM.glob("*.sbatch")), ROOT / ".ci" / "run"]
BIN = Path(sys.executable).parent

STAND_IN = """\
#!{python}
# As `curate` is called by the batch scripts: it measures samples of its part one by one, and stores each.
import json, pathlib, sys, time
place, words = pathlib.Path({place!r}), sys.argv[1:]
def tell(*said):
    with (place / "told").open("a") as stream:
        stream.write(json.dumps(said) + "\\n")
tell("begins", *words)
try:
    if words[0] == "measure":
        number, parts = map(int, words[words.index("--units") + 1].split("/"))
        for sample in range(number, 13, parts):
            stored = place / f"sample-{{sample}}"
            if not stored.exists():
                time.sleep(float((place / "pace").read_text()))
                stored.write_text("")
                tell("measured", sample)
except KeyboardInterrupt:
    tell("stopped", *words)
    raise SystemExit(130)
tell("ends", *words)
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    options = ["--external-sources", "--severity=style", "--shell=bash"]
    done = subprocess.run(
        [str(BIN / "shellcheck"), *options, str(script)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with serving_slurm(tmp_path_factory.mktemp("slurm") / "cluster") as running:
        yield running


class Steps:
    """The scripts, submitted to a cluster on which `curate` is the stand-in."""

    def __init__(self, cluster: Cluster, place: Path) -> None:
        self.cluster, self.place = cluster, place
        curate = place / "bin" / "curate"
        curate.parent.mkdir()
        curate.write_text(STAND_IN.format(python=sys.executable, place=str(place)))
        curate.chmod(0o755)
        self.pace(0.2)

    def pace(self, seconds: float) -> None:
        (self.place / "pace").write_text(str(seconds))

    def submit(self, units: str, *options: str) -> str:
        more = {
            "PATH": f"{self.place / 'bin'}:{os.environ['PATH']}",
            "UNITS": units,
            "CURATION_CONFIG": str(self.place / "curation.yaml"),
        }
        return self.cluster.do(str(SLURM / "submit.sh"), *options, more=more, cwd=self.place)

    def told(self) -> list[list[str | int]]:
        file = self.place / "told"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def measured(self) -> list[str | int]:
        return sorted(said[1] for said in self.told() if said[0] == "measured")

    def wait(self, what: str, there: Callable[[], object], seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not there():
            logs = {file.name: file.read_text() for file in self.place.glob("curation-*.log")}
            assert time.monotonic() < deadline, (what, self.told(), self.cluster.waiting(), logs, self.cluster.log())
            time.sleep(0.3)


@pytest.fixture
def steps(cluster: Cluster, tmp_path: Path) -> Steps:
    return Steps(cluster, tmp_path)


ALL = list(range(1, 13))


@pytest.mark.slow
def test_the_steps_follow_one_another_and_every_part_is_measured_once(steps: Steps) -> None:
    assert "measure" in steps.submit("4")
    steps.wait("the end", lambda: ["ends", "run"] in steps.told())
    told = [said for said in steps.told() if said[0] != "measured"]
    assert told[:2] == [["begins", "run", "--until", "checkpoints"], ["ends", "run", "--until", "checkpoints"]]
    assert told[-2:] == [["begins", "run"], ["ends", "run"]]
    assert {tuple(said[2:]) for said in told[2:-2]} == {("--units", f"{number}/4") for number in range(1, 5)}
    assert steps.measured() == ALL
    steps.wait("an empty queue", lambda: not steps.cluster.waiting())
    logs = sorted(file.name.rsplit("-", 1)[0] for file in steps.place.glob("*.log"))
    assert logs == ["curation-finish", *["curation-measure"] * 4, "curation-prepare"]


def running(steps: Steps) -> str:
    """The job of the first part, once it has measured something."""
    steps.wait("a first sample", steps.measured)
    (line,) = [line for line in steps.cluster.waiting().splitlines() if " curation-measure RUNNING" in line]
    return line.split()[0]


BEGINS: list[str | int] = ["begins", "measure", "--units", "1/1"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["preempted", "time is up"])
def test_a_part_that_is_interrupted_goes_on_after_what_it_stored(steps: Steps, how: str) -> None:
    steps.pace(1.0)
    steps.submit("1")
    job = running(steps)
    if how == "preempted":
        # Ends every process of the job at once: what is not stored is lost, and the job is queued again.
        steps.cluster.do("scontrol", "requeue", job)
    else:
        # What --signal=B:INT does before the time limit.
        steps.cluster.do("scancel", "--batch", "--signal=INT", job)
        steps.wait("the command's own end", lambda: ["stopped", "measure", "--units", "1/1"] in steps.told())
    steps.wait("another turn", lambda: steps.told().count(BEGINS) == 2)
    steps.pace(0.1)
    steps.wait("the end", lambda: ["ends", "run"] in steps.told())
    assert steps.measured() == ALL
    assert steps.told().count(BEGINS) == 2


@pytest.mark.slow
def test_nothing_follows_a_step_that_is_cancelled(steps: Steps) -> None:
    steps.pace(1.0)
    steps.submit("1")
    job = running(steps)
    steps.cluster.do("scancel", job)
    steps.wait("an empty queue", lambda: not steps.cluster.waiting())
    assert ["begins", "run"] not in steps.told()


@pytest.mark.slow
def test_options_are_handed_on(steps: Steps) -> None:
    steps.submit("2", "--partition=all", "--hold")
    waiting = steps.cluster.waiting().splitlines()
    assert len(waiting) == 4
    steps.cluster.do("scancel", *{line.split()[0].split("_")[0] for line in waiting})
    with pytest.raises(AssertionError, match="invalid partition"):
        steps.submit("2", "--partition=no-such-partition")


@pytest.mark.slow
def test_what_cannot_be_is_refused_before_anything_is_submitted(steps: Steps) -> None:
    with pytest.raises(AssertionError, match="UNITS must be a positive whole number"):
        steps.submit("0")
    assert not steps.cluster.waiting()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_curate_itself_comes_to_what_one_run_does(cluster: Cluster, tmp_path: Path, tiny_model: Path) -> None:
    shards = {"a.jsonl": rows(14), "b.jsonl": rows(9, start=40)}
    warm = {"warmup": "{min_pool: 3, fraction: 0.5, batch_size: 2}", "signals": ("step_gradients", "likelihoods")}
    one = make_workspace(tmp_path / "one", tiny_model, shards, **warm)
    total = run(one).tokens_measured
    made = make_workspace(tmp_path / "slurm", tiny_model, shards, **warm)
    place = tmp_path / "bin"
    place.mkdir()
    (place / "curate").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m curation_assets.cli "$@"\n')
    (place / "curate").chmod(0o755)
    more = {"PATH": f"{place}:{os.environ['PATH']}", "UNITS": "2", "CURATION_CONFIG": str(made.config_file)}
    cluster.do(str(SLURM / "submit.sh"), more=more, cwd=tmp_path)
    deadline = time.monotonic() + 600
    while cluster.waiting():
        assert time.monotonic() < deadline, (cluster.waiting(), cluster.log())
        time.sleep(1)
    logs = {file.name.split("-")[1]: file.read_text() for file in sorted(tmp_path.glob("curation-*.log"))}
    assert "tiny: share 2/2:" in logs["measure"], logs
    assert run(Workspace.load(made.config_file)).tokens_measured == 0
    measured = [int(text.split(" tokens")[0].split()[-1].replace(",", "")) for text in _logs_of(tmp_path, "measure")]
    assert sum(measured) == total
    assert subset_ids(made) == subset_ids(one)
    assert len(subset_ids(made)) > 0


def _logs_of(place: Path, step: str) -> list[str]:
    return [file.read_text() for file in sorted(place.glob(f"curation-{step}-*.log"))]
