"""A reader that ends its process. Worker processes import this module, so it imports little."""

from __future__ import annotations

import os
import signal

from curation_assets.corpus.ingest import IngestedShard, ingest_shard
from curation_assets.workspace.workspace import Workspace

PARENT = "CURATION_TEST_PARENT"


def die_at_one(own: Workspace, shard: str) -> IngestedShard:
    """End the process at one shard, as the kernel does when memory runs out. Fail in the test's own process."""
    if shard == "part-1.jsonl":
        assert os.environ[PARENT] != str(os.getpid()), "the file is read again in the parent process"
        os.kill(os.getpid(), signal.SIGKILL)
    return ingest_shard(own, shard)
