"""The Dagster instance that stores runs, events and partitions, shared by `curate` and the UI."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import dagster as dg
from dagster._core.instance.ref import InstanceRef

from curation_assets.workspace.workspace import HOME_VARIABLE, Workspace, dagster_home

NO_COMPUTE_LOGS = "dagster._core.storage.noop_compute_log_manager"
TEMPLATES = Path(__file__).parent / "templates"


def open_instance(workspace: Workspace) -> dg.DagsterInstance:
    """Open the instance, creating its folder with our dagster.yaml on first use.

    DAGSTER_HOME is set for this process and its children. Databases are created under a lock, because two processes
    that create a new SQLite home at once crash.
    """
    home = dagster_home(workspace)
    home.mkdir(parents=True, exist_ok=True)
    os.environ[HOME_VARIABLE] = str(home)
    # Runs of this process print to this terminal. Capturing logs would start a helper process per run, each of
    # which would answer Ctrl-C with its own traceback.
    quiet = {"compute_logs": {"module": NO_COMPUTE_LOGS, "class": "NoOpComputeLogManager"}}
    with (home / ".opening.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        config = home / "dagster.yaml"
        if not config.exists():
            shutil.copyfile(TEMPLATES / "dagster.yaml", config)
        instance = dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home), overrides=quiet))
        # The first query creates the databases.
        instance.get_runs(limit=1)
        instance.get_dynamic_partitions("shards")
        return instance
