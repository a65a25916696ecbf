"""Reading many shards: one after another, or several at once in processes where there is much to read."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from curation_assets.config.settings import Settings
from curation_assets.corpus.ingest import IngestedShard, ingest_shard
from curation_assets.workspace.workspace import Workspace
from curation_resources.workers import cores, worker_processes

LEAST_BYTES = 32 * 2**20
"""Files of less are read before other processes would have started."""
MOST_PROCESSES = 8
"""Each may hold some hundred MiB of rows."""

logger = logging.getLogger("curation")


def ingest_shards(workspace: Workspace, shards: Sequence[str]) -> Iterator[IngestedShard]:
    """Read shards into the warehouse (`ingest_shard`); gives what each gave, in their order.

    The tables are the same however many processes read. If one of these dies, as when memory runs out, the rest is
    read in this process.
    """
    count, done = reading_processes(workspace, shards), 0
    if count > 1:
        what = (workspace.config_file, workspace.settings, workspace.config_digest)
        try:
            with worker_processes(count, _prepare, what) as executor:
                for ingested in executor.map(_ingest, shards):
                    done += 1
                    yield ingested
        except BrokenProcessPool:
            logger.warning("a process that read shards died (is memory short?): the rest is read one after another")
    for shard in shards[done:]:
        yield ingest_shard(workspace, shard)


def reading_processes(workspace: Workspace, shards: Sequence[str]) -> int:
    """How many processes read these shards; 1: this one does."""
    asked = workspace.settings.engine.reading_processes
    if workspace.images_from is not None:
        # A dry look lends its images from another landing area, which other processes do not know.
        return 1
    if asked is None:
        wanted = set(shards)
        size = sum(file.size for file in workspace.landing.files() if file.shard in wanted)
        asked = min(cores(), MOST_PROCESSES) if size >= LEAST_BYTES else 1
    return min(asked, len(shards))


_workspaces: list[Workspace] = []
"""That of a reading process, which has one."""


def _prepare(config_file: Path, settings: Settings, config_digest: str) -> None:
    _workspaces[:] = [Workspace(config_file, settings, config_digest)]


def _ingest(shard: str) -> IngestedShard:
    return ingest_shard(_workspaces[0], shard)
