"""`curate run --until checkpoints`, shares measured by processes of their own, and the run that records them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from curation_assets.cli.app import app
from curation_assets.defs.main_job import MainJob
from curation_assets.operations.share import Share, measure_share
from curation_assets.signals.store import MeasuringError
from curation_assets.tables.signals import SignalName
from curation_assets.workspace.workspace import Workspace
from tests.pipeline.test_interruptions import SLOW_BATCHES, parts, stored_ids
from tests.pipeline.workspaces import arrive, instance_of, make_workspace, rows, run, signal_rows, subset_ids

SIGNALS: tuple[SignalName, ...] = ("step_gradients", "likelihoods")
SHARDS = {"a.jsonl": rows(17), "b.jsonl": rows(9, start=30), "c.jsonl": rows(3, start=60)}

SLOW_SHARE = f"""{SLOW_BATCHES}
from curation_assets.cli.app import app
app()
"""


def prepared(folder: Path, model: Path, **config: object) -> Workspace:
    made = make_workspace(folder, model, SHARDS, signals=SIGNALS, **config)
    arrive(made)
    MainJob(made, instance_of(made)).run("checkpoints")
    return made


def assert_same(one: Workspace, other: Workspace) -> None:
    for name in SIGNALS:
        assert_frame_equal(signal_rows(one, name), signal_rows(other, name), rel_tol=1e-5, abs_tol=1e-6)
    assert subset_ids(one) == subset_ids(other)


@pytest.mark.parametrize("of", [1, 3, 7])
def test_shares_come_to_what_one_run_does(tmp_path: Path, tiny_model: Path, of: int) -> None:
    whole = make_workspace(tmp_path / "whole", tiny_model, SHARDS, signals=SIGNALS)
    total = run(whole).tokens_measured
    made = prepared(tmp_path / "shares", tiny_model)
    done = [one for number in range(1, of + 1) for one in measure_share(made, Share(number, of))]
    assert (sum(one.samples for one in done), sum(one.measured for one in done)) == (29, 29)
    assert sum(one.tokens for one in done) == total
    # Nothing is left to measure, and the run says so and chooses: without a model, which it would load on this device.
    made.config_file.write_text(made.config_file.read_text().replace("device: cpu", "device: 'cuda:7'"))
    made = Workspace.load(made.config_file)
    summary = run(made)
    assert (summary.tokens_measured, summary.subsets) == (0, ["best"])
    assert_same(made, whole)
    assert run(made).subsets == []


def test_a_warm_up_is_trained_first(tmp_path: Path, tiny_model: Path) -> None:
    warm = {"warmup": "{min_pool: 3, fraction: 0.5, batch_size: 2}"}
    made = make_workspace(tmp_path, tiny_model, SHARDS, signals=SIGNALS, **warm)
    with pytest.raises(MeasuringError, match=r"no shard has been read yet\. Run `curate run --until checkpoints`"):
        list(measure_share(made, Share(1, 1)))
    arrive(made)
    summary = MainJob(made, instance_of(made)).run("corpus")
    assert (summary.read, summary.measured) == (3, {})
    with pytest.raises(MeasuringError, match="warm-up of target tiny has not been trained"):
        list(measure_share(made, Share(1, 1)))
    summary = MainJob(made, instance_of(made)).run("checkpoints")
    assert (summary.read, summary.measured, summary.tokens_measured) == (0, {}, 0)
    (done,) = measure_share(made, Share(1, 1))
    assert done.measured == 29
    assert run(made).tokens_measured == 0


def test_a_limit_is_shared(tmp_path: Path, tiny_model: Path) -> None:
    made = prepared(tmp_path, tiny_model, batch_tokens=200, part_seconds=0.0)
    made.config_file.write_text(f"{made.config_file.read_text()}limits: {{tokens: 600}}\n")
    made = Workspace.load(made.config_file)
    for number in (1, 2):
        (done,) = measure_share(made, Share(number, 2))
        assert 300 <= done.tokens < 300 + 200
        assert done.stopped == "300 tokens (limits.tokens)"


def test_a_share_that_is_ended_goes_on_where_it_was(tmp_path: Path, tiny_model: Path) -> None:
    whole = make_workspace(tmp_path / "whole", tiny_model, SHARDS, signals=SIGNALS)
    total = run(whole).tokens_measured
    made = prepared(tmp_path / "shares", tiny_model, batch_tokens=200, part_seconds=0.0)
    command = ["score", "--units", "1/2", "--config", str(made.config_file)]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_SHARE, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 240
    while parts(made) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "finished work is kept. To resume: `curate measure --units 1/2`" in " ".join(said.split())
    before = len(stored_ids(made, "likelihoods"))
    assert before > 0
    # Another number of shares goes on as well.
    tokens = 0
    for units in ("1/3", "2/3", "3/3"):
        shown = CliRunner().invoke(app, ["score", "--units", units, "--config", str(made.config_file)])
        assert shown.exit_code == 0, shown.output
        assert f"tiny: share {units}:" in shown.output
        tokens += int(shown.output.split(" tokens")[0].split()[-1].replace(",", ""))
    assert 0 < tokens < total
    for name in SIGNALS:
        assert len(stored_ids(made, name)) == len(set(stored_ids(made, name))) == 29
    assert run(made).tokens_measured == 0
    assert_same(made, whole)


def test_two_shares_at_the_same_time_do_not_disturb_one_another(tmp_path: Path, tiny_model: Path) -> None:
    made = prepared(tmp_path, tiny_model, batch_tokens=200, part_seconds=0.0)
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "curation_assets.cli", "score", "--units", units, "-c", str(made.config_file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for units in ("1/2", "2/2")
    ]
    for process in running:
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, said
    for name in SIGNALS:
        assert len(stored_ids(made, name)) == len(set(stored_ids(made, name))) == 29
    assert run(made).tokens_measured == 0
