"""Work spread over processes of this machine, none of which outlives the one that asked for it."""

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
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def worker_processes(
    count: int, prepare: Callable[..., None], arguments: tuple[Any, ...]
) -> Iterator[ProcessPoolExecutor]:
    """An executor of spawned processes, which end at once when the block ends, however it does.

    Each of them holds one end of a pipe and ends when the other one is closed: by us, or because we were killed. The
    executor by itself would finish what is begun before an interrupt is heard, and leave its processes behind if this
    one is killed.

    Args:
        count: processes.
        prepare: called first in each of them; a function that can be imported.
        arguments: of `prepare`, which travel to the process.
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
    # Ctrl-C reaches every process of the terminal: the one that asked decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    prepare(*arguments)


def _end_with(lifeline: Connection) -> None:
    # Nothing is ever sent: it returns when nobody holds the other end any more.
    lifeline.poll(None)
    os._exit(1)
