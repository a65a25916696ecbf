"""Several worker processes against one pass in this process; workers that die, fail or are left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from curation_resources.scoring import devices, units
from curation_resources.scoring.complete_weights import LoadingError
from curation_resources.scoring.device_names import devices_of
from curation_resources.scoring.devices import DeviceGroup, WorkerError, make_pass
from curation_resources.scoring.errors import ScoringError
from curation_resources.scoring.samples import SampleSignals
from curation_resources.scoring.spec import PassSpec
from tests.scoring.cases import ALL_SIGNALS, assert_same_signals, random_samples


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "MOST_CHARACTERS", 700)
    monkeypatch.setattr(units, "LEAST_CHARACTERS", 100)


@pytest.fixture(scope="module")
def one_worker(tiny_model: Path) -> Iterator[DeviceGroup]:
    """A group of one worker, which a test may end: the next one starts another."""
    with DeviceGroup(PassSpec(tiny_model), ["cpu"]) as group:
        yield group


def collect(group: DeviceGroup, count: int = 23) -> list[SampleSignals]:
    done: list[int] = []
    batches = list(group.stream(random_samples(count), ALL_SIGNALS, done.append))
    assert sum(done) == count
    return sorted((result for batch in batches for result in batch), key=lambda result: result.position)


def test_two_processes_give_what_one_gives(tiny_model: Path) -> None:
    spec = PassSpec(tiny_model, batch_tokens=300)
    expected = make_pass(spec, "cpu").measure(random_samples(23), ALL_SIGNALS)
    with DeviceGroup(spec, ["cpu", "cpu"]) as group:
        for _ in range(2):  # the workers stay for a second stream
            for found, alone in zip(collect(group), expected, strict=True):
                assert_same_signals(found, alone)


def test_a_worker_that_dies_is_replaced_and_nothing_is_lost(tiny_model: Path) -> None:
    with DeviceGroup(PassSpec(tiny_model), ["cpu", "cpu"]) as group:
        stream = group.stream(random_samples(23), ALL_SIGNALS)
        results = list(next(stream))
        victim = group._workers[0].process
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        for batch in stream:
            results.extend(batch)
        assert sorted(result.position for result in results) == list(range(23))
        assert group._workers[0].process is not victim


def test_workers_that_keep_dying_are_an_error(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_work", os._exit)  # the connection is no exit code: the worker dies at once
    with DeviceGroup(PassSpec(tiny_model), ["cpu"]) as group:
        group.make = os.getpid  # type: ignore[assignment]  # never called; a worker need not import torch to die
        with pytest.raises(WorkerError, match=r"from s\d+ on .*memory"):
            collect(group)


def test_two_streams_at_once_are_refused(one_worker: DeviceGroup) -> None:
    first = one_worker.stream(random_samples(23), ALL_SIGNALS)
    begun = len(next(first))
    with pytest.raises(RuntimeError, match="another stream"):
        next(iter(one_worker.stream(random_samples(3), ALL_SIGNALS)))
    assert begun + sum(len(batch) for batch in first) == 23


def test_a_worker_that_died_while_idle_is_no_death_of_the_unit(
    one_worker: DeviceGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "TRIES", 1)
    assert len(collect(one_worker, 3)) == 3
    one_worker._workers[0].process.kill()
    one_worker._workers[0].process.join()
    assert len(collect(one_worker, 3)) == 3


def test_an_error_of_loading_arrives_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with DeviceGroup(PassSpec(tmp_path), ["cpu"]) as group, pytest.raises(ScoringError):
        collect(group)
    assert group._workers == []


def test_stopping_early_ends_the_workers(one_worker: DeviceGroup) -> None:
    stream = one_worker.stream(random_samples(23), ALL_SIGNALS)
    next(stream)
    process = one_worker._workers[0].process
    stream.close()  # type: ignore[attr-defined]
    assert not process.is_alive()


ORPHANS = """
import sys, time
from pathlib import Path
from curation_resources.scoring import devices, units
from curation_resources.scoring.spec import PassSpec
from tests.scoring.cases import ALL_SIGNALS, random_samples

if __name__ == "__main__":
    group = devices.DeviceGroup(PassSpec(Path(sys.argv[1])), ["cpu"])
    list(group.stream(random_samples(3), ALL_SIGNALS))
    print(group._workers[0].process.pid, flush=True)
    time.sleep(600)
"""


def test_a_killed_parent_leaves_no_worker_behind(tiny_model: Path, tmp_path: Path) -> None:
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    command = [sys.executable, str(script), str(tiny_model)]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


def test_names_of_devices() -> None:
    count = torch.cuda.device_count()
    assert devices_of("auto") == ([f"cuda:{number}" for number in range(count)] or ["cpu"])
    assert devices_of("cpu, cpu") == ["cpu", "cpu"]
    with pytest.raises(ScoringError, match="cuda:99 not found"):
        devices_of("cuda:99")


def test_loading_errors_survive_the_pipe() -> None:
    sent = devices._sendable(LoadingError("no LM head"))
    assert isinstance(sent, LoadingError)
    assert str(sent) == "no LM head"
    assert "ZeroDivisionError" in str(devices._sendable(ZeroDivisionError("x")))
