"""Runs that ended badly: mark those of processes that are gone as failed, and time the next attempt of failed ones.

Dagster cannot detect that an in-process run was killed: it stays STARTED and keeps the only slot of pool `gpu`, so
nothing would ever be measured again. Runs of `curate run` carry a tag with their process; runs of the daemon live as
long as their `curate ui`, which holds a lock.
"""

from __future__ import annotations

import fcntl
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from curation_resources.errors import UserError

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
PROCESS_TAG = "curation/process"
UI_LOCK = ".ui.lock"
STATE_TAG = "curation/state"
"""Tag of a run that a sensor requested: the state of the stage that it is to bring up to date."""

MOST_ATTEMPTS = 12
FIRST_PAUSE, PAUSE_FACTOR, LONGEST_PAUSE = 30.0, 4.0, 86400.0
"""Seconds before a failed run is requested again: 30, then 4 times as long after each failure, at most a day."""


class RunInProgressError(UserError):
    """An operation is not possible while a run of the instance is in progress."""


def process_tags() -> dict[str, str]:
    """Return the tags of a run in this process; the daemon never retries such a run."""
    return {PROCESS_TAG: f"{socket.gethostname()}/{os.getpid()}/{_started(os.getpid())}", "dagster/max_retries": "0"}


def fail_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Fail the unfinished runs of processes of this machine that are gone; return their ids."""
    dead = []
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        tag = run.tags.get(PROCESS_TAG)
        if tag is not None and not _may_live(tag):
            _fail(instance, run, "its process is gone; what it had measured is kept")
            dead.append(run.run_id)
    return dead


@dataclass(frozen=True)
class Attempts:
    """The failed or killed runs that a sensor requested for one state of a stage.

    Attributes:
        count: their number, at most `MOST_ATTEMPTS`.
        last: when the last one ended, in seconds since 1970.
        run: its id; empty if there is none.
        killed: whether it ended without a failed step.
    """

    count: int
    last: float
    run: str
    killed: bool

    def wait(self, now: float, depth: int = 0) -> float:
        """Return the seconds until the next attempt: longer after each failure, at most a day.

        A range that was halved `depth` times waits twice as long for each time: what makes all of them fail, such as a
        broken model, must not start run after run.
        """
        if not self.count:
            return 0.0
        pause = min(FIRST_PAUSE * PAUSE_FACTOR ** (self.count - 1) * 2.0**depth, LONGEST_PAUSE)
        return max(0.0, self.last + pause - now)


def failed_attempts(instance: dg.DagsterInstance, state: str) -> Attempts:
    """Return the failed runs of a state, which a run names in `STATE_TAG`."""
    wanted = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], tags={STATE_TAG: state})
    records = instance.get_run_records(wanted, limit=MOST_ATTEMPTS)
    ends = [record.end_time or record.update_timestamp.timestamp() for record in records]
    last = records[0].dagster_run.run_id if records else ""
    killed = bool(last) and not instance.all_logs(last, of_type=dg.DagsterEventType.STEP_FAILURE)
    return Attempts(len(records), max(ends, default=0.0), last, killed)


def refuse_while_running(instance: dg.DagsterInstance, what: str) -> None:
    """Fail dead runs, then refuse an operation that must not happen while a run is in progress or queued.

    Raises:
        RunInProgressError: there is such a run.
    """
    fail_dead_runs(instance)
    runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    if runs:
        raise RunInProgressError(
            f"{what}: {len(runs)} runs in progress or queued ({', '.join(r.run_id[:8] for r in runs[:3])}). "
            "Wait until there is none, or terminate them in the UI."
        )


def fail_runs_of_dead_ui(instance: dg.DagsterInstance, home: Path) -> int | None:
    """Take the lock that a `curate ui` holds for its lifetime, and fail the runs that a previous one left behind.

    Returns:
        The lock's file descriptor, which must stay open; None if another `curate ui` is alive.
    """
    descriptor = os.open(home / UI_LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    os.set_inheritable(descriptor, True)
    launched = [status for status in UNFINISHED if status != dg.DagsterRunStatus.QUEUED]
    for run in instance.get_runs(dg.RunsFilter(statuses=launched)):
        if PROCESS_TAG not in run.tags:
            _fail(instance, run, "the UI and daemon that it belonged to are gone; what it had measured is kept")
    fail_dead_runs(instance)
    return descriptor


def _fail(instance: dg.DagsterInstance, run: dg.DagsterRun, reason: str) -> None:
    instance.report_run_failed(run, f"The run was killed: {reason}.")
    instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def _may_live(tag: str) -> bool:
    """Return whether a process may be alive: it is on another machine, or its id and start time exist here."""
    host, process, started = tag.split("/")
    return host != socket.gethostname() or _started(int(process)) == started


def _started(process: int) -> str:
    """Return the start time of a process in clock ticks since boot; empty if there is no such process.

    Process ids are reused, so the id alone is not enough. Without /proc, any process that answers a signal counts as
    the same one.
    """
    stat = Path(f"/proc/{process}/stat")
    if Path("/proc/self/stat").exists():
        try:
            return stat.read_text().rsplit(")", 1)[1].split()[19]
        except (OSError, IndexError):
            return ""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return "alive"
    return "alive"
