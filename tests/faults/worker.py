"""What a run is in the harness: the main job in a process of its own, which can be killed without harm to others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
# A process that has only imported: each run begins as a copy of it, without the seconds that imports take.
CONTEXT.set_forkserver_preload(["tests.faults.imports"])


def start(config: Path, log: Path, environment: dict[str, str], kill_at_commit: int = 0) -> BaseProcess:
    """Start a run of a workspace; its output goes to `log`.

    Args:
        config: its curation.yaml.
        log: a file.
        environment: variables that are set in it.
        kill_at_commit: it kills itself before the file of this number gets its name; 0: it does not.
    """
    process = CONTEXT.Process(target=_run, args=(config, log, environment, kill_at_commit))
    process.start()
    return process


def finish(process: BaseProcess, seconds: float = 900.0) -> int:
    """The run's exit code; it is killed, and that is an error, if it takes longer.

    A dead maker's claim on a folder in a bucket is waited for, for five minutes (`storage.folder_claim`).
    """
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"a run did not end within {seconds:.0f} s")
    assert process.exitcode is not None
    return process.exitcode


def _run(config: Path, log: Path, environment: dict[str, str], kill_at_commit: int) -> None:
    from curation_assets.defs.instance import open_instance
    from curation_assets.defs.main_job import MainJob
    from curation_assets.workspace.workspace import Workspace

    stream = log.open("a", buffering=1)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if kill_at_commit:
        _kill_before_rename(kill_at_commit)
    try:
        workspace = Workspace.load(config)
        with open_instance(workspace) as instance:
            MainJob(workspace, instance).run()
    except BaseException:
        traceback.print_exc()
        sys.exit(1)


def _kill_before_rename(number: int) -> None:
    real, count = Path.replace, 0

    def replace(path: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(path, target)

    Path.replace = replace  # type: ignore[assignment,method-assign]
