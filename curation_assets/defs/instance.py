"""The Dagster instance that stores runs, events and partitions, shared by `curate` and the UI."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import dagster as dg
from ruamel.yaml import YAML

from curation_assets.workspace.workspace import HOME_VARIABLE, Workspace, dagster_home

NO_COMPUTE_LOGS = {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
OWN_CONFIG = ".curate-dagster.yaml"
"""The settings of dagster.yaml without compute logs; exists only while an instance is opened."""

TEMPLATES = Path(__file__).parent / "templates"


def open_instance(workspace: Workspace) -> dg.DagsterInstance:
    """Open the instance, creating its folder with our dagster.yaml on first use.

    DAGSTER_HOME is set for this process and its children. Databases are created under a lock, because two processes
    that create a new SQLite home at once crash.
    """
    home = dagster_home(workspace)
    home.mkdir(parents=True, exist_ok=True)
    os.environ[HOME_VARIABLE] = str(home)
    with (home / ".opening.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        config = home / "dagster.yaml"
        if not config.exists():
            shutil.copyfile(TEMPLATES / "dagster.yaml", config)
        instance = _open_quietly(home, config)
        # The first query creates the databases.
        instance.get_runs(limit=1)
        instance.get_dynamic_partitions("shards")
        return instance


def _open_quietly(home: Path, config: Path) -> dg.DagsterInstance:
    """Open the instance without compute logs: runs of this process print to this terminal.

    Capturing logs would start a helper process per run, each of which would answer Ctrl-C with its own traceback.
    """
    yaml = YAML()
    settings = yaml.load(config.read_text(encoding="utf-8")) or {}
    settings["compute_logs"] = NO_COMPUTE_LOGS
    own = home / OWN_CONFIG
    try:
        with own.open("w", encoding="utf-8") as stream:
            yaml.dump(settings, stream)
        return dg.DagsterInstance.from_config(str(home), own.name)
    finally:
        own.unlink(missing_ok=True)
