"""Runs, events and partitions in PostgreSQL, with the storage section of compose's dagster.yaml, on a real server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy
import yaml  # type: ignore[import-untyped]

from curation_assets.defs.instance import open_instance
from curation_assets.defs.main_job import MainJob
from curation_assets.defs.partitions import SHARDS
from curation_assets.workspace.workspace import Workspace
from tests.deploy.postgres import DATABASE, PASSWORD, USER, Server, serving_postgres
from tests.pipeline.workspaces import landed, make_workspace, rows, subset_ids, write_shard

pytestmark = pytest.mark.system

DEPLOY = Path(__file__).parent.parent.parent / "deploy"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving_postgres() as running:
        yield running


@pytest.fixture
def workspace(tmp_path: Path, tiny_model: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A small corpus whose DAGSTER_HOME has compose's dagster.yaml without what needs a bucket."""
    settings = yaml.safe_load((DEPLOY / "compose" / "dagster.yaml").read_text())
    del settings["compute_logs"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dagster.yaml").write_text(yaml.safe_dump(settings))
    for name, value in {**server.environment(), "DAGSTER_HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    return make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(4), "b.jsonl": rows(4, start=50)})


def counted(server: Server, *tables: str) -> list[int]:
    """Rows of tables, asked of the server itself."""
    address = sqlalchemy.URL.create("postgresql+psycopg2", USER, PASSWORD, "127.0.0.1", server.port, DATABASE)
    engine = sqlalchemy.create_engine(address)
    try:
        with engine.connect() as connection:
            return [connection.execute(sqlalchemy.text(f"select count(*) from {name}")).scalar_one() for name in tables]
    finally:
        engine.dispose()


def curate(workspace: Workspace, *arguments: str) -> subprocess.Popen[str]:
    """`curate` in a process of its own."""
    command = [sys.executable, "-m", "curation_assets.cli", *arguments, "--config", str(workspace.config_file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ.copy())


@pytest.mark.slow
def test_the_main_job_keeps_everything_in_the_server(workspace: Workspace, server: Server) -> None:
    with open_instance(workspace) as instance:
        assert type(instance.run_storage).__module__.startswith("dagster_postgres")
        summary = MainJob(workspace, instance).run()
        assert summary.measured == {"tiny": 8}
        assert len(subset_ids(workspace)) == 4
        assert instance.get_runs_count() > 0
        assert set(instance.get_dynamic_partitions(str(SHARDS.name))) == {"a.jsonl", "b.jsonl"}
    assert all(counted(server, "runs", "event_logs", "dynamic_partitions"))
    home = Path(os.environ["DAGSTER_HOME"])
    assert not list(home.rglob("*.db"))

    # The server goes and comes again: nothing is measured anew, and what is new is.
    server.stop()
    server.start()
    with open_instance(workspace) as instance:
        assert MainJob(workspace, instance).run().tokens_measured == 0
        write_shard(landed(workspace) / "c.jsonl", rows(2, start=90))
        assert MainJob(workspace, instance).run().measured == {"tiny": 2}


@pytest.mark.slow
def test_an_instance_that_is_open_outlives_a_restart_of_the_server(workspace: Workspace, server: Server) -> None:
    with open_instance(workspace) as instance:
        before = instance.get_runs_count()
        server.stop()
        server.start()
        MainJob(workspace, instance).run()
        assert instance.get_runs_count() > before


@pytest.mark.slow
def test_two_processes_work_on_the_instance_at_once(workspace: Workspace, tmp_path: Path, tiny_model: Path) -> None:
    other = make_workspace(tmp_path / "other", tiny_model, {"d.jsonl": rows(4, start=200)})
    # Nothing has been made in this database for these: the first queries race.
    running = [curate(one, "run") for one in (workspace, other)]
    for process in running:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert len(subset_ids(workspace)) == 4
    assert len(subset_ids(other)) == 2
    with open_instance(workspace) as instance:
        assert {run.status for run in instance.get_runs()} <= {dg.DagsterRunStatus.SUCCESS}
