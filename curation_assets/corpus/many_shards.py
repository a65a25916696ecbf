"""Work on many shards: one after another, or several at once in processes where there is much to read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import TypeVar

from curation_assets.config.settings import Settings
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from curation_resources.workers import cores, worker_processes

LEAST_BYTES = 32 * 2**20
"""Landing files of less are processed before other processes would have started."""

MOST_PROCESSES = 8
"""Each process may hold some hundred MiB of rows."""

T = TypeVar("T")
logger = logging.getLogger("curation")


class WorkerDiedError(UserError):
    """A process that worked on a shard ended without a result."""


def map_shards(
    workspace: Workspace,
    shards: Sequence[str],
    work: Callable[[Workspace, str], T],
    died: Callable[[Workspace, str], T] | None = None,
) -> Iterator[T]:
    """Yield the result of `work(workspace, shard)` for each shard, in order.

    The results are the same however many processes work. If a process dies (out of memory, or a file that crashes its
    reader), the remaining shards are processed one at a time in a process of their own, never in this one: what ended
    a process once would end the run.

    Args:
        workspace: the configuration and its warehouse.
        shards: names of shards.
        work: a function that can be imported; its result travels between processes.
        died: called in this process, in place of `work`, for a shard whose own process died.

    Raises:
        WorkerDiedError: a shard's own process died, and there is no `died`.
    """
    count, done = processes_for(workspace, shards), 0
    if count == 1:
        yield from (work(workspace, shard) for shard in shards)
        return
    arguments = (workspace.config_file, workspace.settings, workspace.config_digest)
    try:
        with worker_processes(count, _prepare, arguments) as executor:
            for result in executor.map(partial(_run, work), shards):
                done += 1
                yield result
    except BrokenProcessPool:
        logger.warning(
            "a worker process died, perhaps for lack of memory. The remaining %d shards are processed one at a time.",
            len(shards) - done,
        )
    while done < len(shards):
        try:
            with worker_processes(1, _prepare, arguments) as executor:
                for shard in shards[done:]:
                    result = executor.submit(_run, work, shard).result()
                    done += 1
                    yield result
        except BrokenProcessPool as error:
            if died is None:
                raise WorkerDiedError(
                    f"shard {shards[done]}: the process that worked on it died, maybe for lack of memory. Free memory, "
                    "or split its file."
                ) from error
            yield died(workspace, shards[done])
            done += 1


def processes_for(workspace: Workspace, shards: Sequence[str]) -> int:
    """Return how many processes work on these shards; 1 means this one."""
    asked = workspace.settings.engine.reading_processes
    if workspace.images_from is not None:
        # A dry run borrows images from another landing area, which other processes do not know.
        return 1
    if asked is None:
        wanted = set(shards)
        size = sum(file.size for file in workspace.landing.files() if file.shard in wanted)
        asked = min(cores(), MOST_PROCESSES) if size >= LEAST_BYTES else 1
    return min(asked, len(shards))


_workspaces: list[Workspace] = []
"""The workspace of a worker process."""


def _prepare(config_file: Path, settings: Settings, config_digest: str) -> None:
    _workspaces[:] = [Workspace(config_file, settings, config_digest)]


def _run(work: Callable[[Workspace, str], T], shard: str) -> T:
    return work(_workspaces[0], shard)
