"""Worker processes end with the block that asked for them, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from curation_resources.workers import worker_processes

_given: list[str] = []


def prepare(word: str) -> None:
    _given.append(word)


def described(number: int) -> tuple[int, str, int]:
    return number, _given[0], os.getpid()


def note_and_sleep(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(120)


def die(_number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def gone(process: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{process}/stat")
        if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def wait_for_workers(folder: Path, count: int) -> list[int]:
    deadline = time.monotonic() + 60
    while len(found := list(folder.iterdir())) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return [int(path.name) for path in found]


def test_results_come_in_order_from_processes_that_were_prepared() -> None:
    with worker_processes(2, prepare, ("word",)) as executor:
        results = list(executor.map(described, range(20)))
    assert [number for number, _, _ in results] == list(range(20))
    assert {word for _, word, _ in results} == {"word"}
    assert os.getpid() not in {process for _, _, process in results}


def test_an_error_ends_what_is_being_worked_on(tmp_path: Path) -> None:
    begin, processes = time.monotonic(), []

    def interrupted() -> None:
        with worker_processes(2, prepare, ("",)) as executor:
            for _ in range(2):
                executor.submit(note_and_sleep, str(tmp_path))
            processes.extend(wait_for_workers(tmp_path, 2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(map(gone, processes))
    assert time.monotonic() - begin < 60


def test_a_worker_that_dies_is_an_error() -> None:
    with pytest.raises(BrokenProcessPool), worker_processes(2, prepare, ("",)) as executor:
        list(executor.map(die, range(4)))


def test_workers_of_a_killed_process_end(tmp_path: Path) -> None:
    script = (
        "from tests.resources.test_workers import note_and_sleep, prepare\n"
        "from curation_resources.workers import worker_processes\n"
        "with worker_processes(2, prepare, ('',)) as executor:\n"
        f"    list(executor.map(note_and_sleep, [{str(tmp_path)!r}] * 2))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    processes = wait_for_workers(tmp_path, 2)
    process.kill()
    process.wait()
    assert all(map(gone, processes))
