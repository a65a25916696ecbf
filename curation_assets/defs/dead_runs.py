"""Runs whose process is gone: said to have failed, and their place in the pools given back.

Dagster cannot see that an in-process run was killed: it stays STARTED and keeps the only slot of pool `gpu`,
so nothing would ever be measured again. Runs of `curate run` carry the process that they live in; runs of the
daemon live as long as their `curate ui`, which holds a lock.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Mapping
from pathlib import Path

import dagster as dg

from curation_assets.defs.partitions import STAGE_TAG
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
MOST_KILLED = 3


class RunInProgressError(UserError):
    """Something cannot be done while a run of the instance is in progress."""


def process_tags() -> dict[str, str]:
    """Tags of a run that lives in this process; such a run is never retried by the daemon."""
    return {PROCESS_TAG: f"{socket.gethostname()}/{os.getpid()}/{_started(os.getpid())}", "dagster/max_retries": "0"}


def bury_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Fail the unfinished runs of processes of this machine that are gone; gives their ids."""
    dead = []
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        tag = run.tags.get(PROCESS_TAG)
        if tag is not None and not _may_live(tag):
            _bury(instance, run, "its process is gone; what it had measured is kept")
            dead.append(run.run_id)
    return dead


def killed_runs(
    instance: dg.DagsterInstance, stage: str, key: dg.AssetKey, tags: Mapping[str, str] | None = None
) -> int:
    """How often a run of a stage that makes an asset ended although no step of it failed; at most `MOST_KILLED`.

    What is killed time and again (out of memory, say) is not to be asked for for ever.

    Args:
        instance: where runs are kept.
        stage: that runs are about.
        key: an asset that they make.
        tags: others that they have: those of a range of shards.
    """
    wanted = {STAGE_TAG: stage, **(tags or {})}
    failed = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], tags=wanted))
    killed = 0
    for run in failed:
        if key in (run.asset_selection or ()) and not _failed_by_itself(instance, run):
            killed += 1
        if killed == MOST_KILLED:
            break
    return killed


def _failed_by_itself(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    return bool(instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE))


def refuse_while_running(instance: dg.DagsterInstance, what: str) -> None:
    """Bury dead runs, and refuse what must not be done beside a run that lives or waits.

    Raises:
        RunInProgressError: there is such a run.
    """
    bury_dead_runs(instance)
    runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    if runs:
        raise RunInProgressError(
            f"{what}: {len(runs)} runs are in progress or queued ({', '.join(run.run_id[:8] for run in runs[:3])}): "
            "wait for them, or end them in the UI"
        )


def bury_runs_of_a_dead_ui(instance: dg.DagsterInstance, home: Path) -> int | None:
    """Take the lock that a `curate ui` holds for life, and fail what a former one left running.

    Returns:
        The lock's file descriptor, to be kept open; None if another `curate ui` is alive.
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
            _bury(instance, run, "the UI and daemon that it belonged to are gone; what it had measured is kept")
    bury_dead_runs(instance)
    return descriptor


def _bury(instance: dg.DagsterInstance, run: dg.DagsterRun, reason: str) -> None:
    instance.report_run_failed(run, f"The run was killed: {reason}.")
    instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def _may_live(tag: str) -> bool:
    """Whether a process may be alive: it is on another machine, or its number and start time are here."""
    host, process, started = tag.split("/")
    return host != socket.gethostname() or _started(int(process)) == started


def _started(process: int) -> str:
    """When a process started, in clock ticks since the machine did; empty if there is no such process.

    Numbers of processes are used again, so the number alone does not tell. Where there is no /proc, a
    process that answers a signal counts as the same one.
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
