"""Worker processes on this machine that never outlive the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def worker_processes(
    count: int, prepare: Callable[..., None], arguments: tuple[Any, ...]
) -> Iterator[ProcessPoolExecutor]:
    """Yield an executor of spawned processes, which end as soon as the block ends, even if it is interrupted.

    Each worker holds one end of a pipe and exits when the other end is closed: by us, or because we were killed. A bare
    executor would finish running tasks before it handles an interrupt, and leave its processes behind if the parent is
    killed.

    Args:
        count: number of processes.
        prepare: initializer that runs first in each process; must be importable.
        arguments: arguments of `prepare`, sent to the processes.
    """
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(count, context, _begin, (theirs, prepare, arguments))
    try:
        yield executor
    finally:
        ours.close()
        executor.shutdown(wait=True, cancel_futures=True)
        theirs.close()


def _begin(lifeline: Connection, prepare: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    # Ctrl-C reaches every process of the terminal; the parent decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    prepare(*arguments)


def _end_with(lifeline: Connection) -> None:
    # Nothing is ever sent: `poll` returns when no process holds the other end any more.
    lifeline.poll(None)
    os._exit(1)
