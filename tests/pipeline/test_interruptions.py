"""kill -9 and Ctrl-C in the middle of measuring: nothing is lost, and nothing is measured twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from curation_assets.defs.dead_runs import UNFINISHED
from curation_assets.defs.instance import open_instance
from curation_assets.defs.main_job import MainJob
from curation_assets.signals.store import signal_dir
from curation_assets.tables.signals import SignalName
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import make_workspace, rows, run, sample_scores, stored, subset_ids

SIGNALS: tuple[SignalName, ...] = ("step_gradients", "likelihoods")

SLOW_BATCHES = """
import time
from curation_resources.scoring import forward

# A little work after every batch, so that what measures can be caught in the middle of a shard.
real = forward.measure_batch
def slow(*given):
    time.sleep(0.15)
    return real(*given)
forward.measure_batch = slow
"""

SLOW_RUN = f"""{SLOW_BATCHES}
import sys
from pathlib import Path
from curation_assets.defs.instance import open_instance
from curation_assets.defs.main_job import MainJob
from curation_assets.workspace.workspace import Workspace

workspace = Workspace.load(Path(sys.argv[1]))
with open_instance(workspace) as instance:
    print("started", flush=True)
    MainJob(workspace, instance).run()
print("finished", flush=True)
"""


def parts(workspace: Workspace) -> int:
    folder = signal_dir(workspace, workspace.settings.targets[0], "step_gradients")
    assert folder is not None
    return len(workspace.warehouse.names(folder))


def stored_ids(workspace: Workspace, name: SignalName) -> list[str]:
    """The sample_ids in all parts of a signal, as often as they are stored."""
    folder = signal_dir(workspace, workspace.settings.targets[0], name)
    scan = workspace.warehouse.scan(str(folder))
    return [] if scan is None else scan.select("sample_id").collect()["sample_id"].to_list()


def interrupt(workspace: Workspace, how: signal.Signals) -> int:
    """Start a run, stop it once it has committed some parts; gives its exit status."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, str(workspace.config_file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 240
    while parts(workspace) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, process.stdout.read().decode() if process.stdout else ""
    process.send_signal(how)
    return process.wait(timeout=60)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_goes_on_where_it_was(tmp_path: Path, tiny_model: Path, how: signal.Signals) -> None:
    shards = {"a.jsonl": rows(30), "b.jsonl": rows(30, start=100)}
    workspace = make_workspace(
        tmp_path / "stopped", tiny_model, shards, part_seconds=0, batch_tokens=300, signals=SIGNALS
    )
    assert interrupt(workspace, how) != 0
    before = [stored_ids(workspace, name) for name in SIGNALS]
    # Killed between the parts of two signals, a sample may have one and not the other.
    kept = len(set.intersection(*map(set, before)))
    assert 0 < kept < 60
    assert not stored(workspace, pattern="*.tmp")
    # On the instance of the killed run, which still holds the only slot of the pool.
    with open_instance(workspace) as instance:
        summary = MainJob(workspace, instance).run()
        assert not instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    assert summary.measured == {"tiny": 60 - kept}
    for name in SIGNALS:
        ids = stored_ids(workspace, name)
        assert len(ids) == len(set(ids)) == 60  # nothing twice
    undisturbed = make_workspace(tmp_path / "undisturbed", tiny_model, shards, signals=SIGNALS)
    run(undisturbed)
    assert subset_ids(workspace) == subset_ids(undisturbed)
    stopped, whole = sample_scores(workspace), sample_scores(undisturbed)
    assert stopped.drop("grace", "answer_norm").equals(whole.drop("grace", "answer_norm"))
    assert stopped["grace"].to_list() == pytest.approx(whole["grace"].to_list(), rel=1e-5)
