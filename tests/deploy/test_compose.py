"""deploy/compose: taken by Docker Compose, and rehearsed: every service's own command, without containers."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import dagster as dg
import pytest
import yaml  # type: ignore[import-untyped]

from curation_assets.defs.partitions import STAGE_TAG
from curation_assets.workspace.workspace import Workspace
from tests.deploy.postgres import free_port, serving_postgres
from tests.pipeline.workspaces import rows

pytestmark = pytest.mark.system

COMPOSE = Path(__file__).parent.parent.parent / "deploy" / "compose"
BIN = Path(sys.executable).parent
SECRETS = ("DAGSTER_PG_PASSWORD", "AWS_SECRET_ACCESS_KEY")


def configured(tmp_path: Path, *files: str, secrets: bool = True) -> subprocess.CompletedProcess[str]:
    """What Docker Compose makes of files."""
    text = (COMPOSE / ".env.example").read_text()
    for name in SECRETS:
        assert f"\n{name}=\n" in text, f"{name} has a value"
        text = text.replace(f"{name}=\n", f"{name}=long-enough\n") if secrets else text
    (tmp_path / "env").write_text(text)
    options = [part for file in files for part in ("--file", str(COMPOSE / file))]
    # Not the package's own `docker-compose`: it loses the exit status.
    package = importlib.util.find_spec("compose")
    assert package is not None
    assert package.origin is not None
    program = str(Path(package.origin).parent / "docker-compose")
    command = [program, "--env-file", str(tmp_path / "env"), *options, "config", "--format", "json"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("files", [("compose.yaml",), ("compose.yaml", "compose.gpu.yaml")])
def test_compose_takes_the_files(tmp_path: Path, files: tuple[str, ...]) -> None:
    done = configured(tmp_path, *files)
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    assert set(services) == {"postgres", "s3", "bucket", "code", "webserver", "daemon"}
    # Whoever reaches a port may launch runs, or write the bucket.
    assert {port["host_ip"] for one in services.values() for port in one.get("ports", [])} == {"127.0.0.1"}
    assert {name for name, one in services.items() if "healthcheck" not in one} == {"bucket"}
    devices = services["code"].get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    assert bool(devices) == ("compose.gpu.yaml" in files)


def test_no_password_is_a_default(tmp_path: Path) -> None:
    done = configured(tmp_path, "compose.yaml", secrets=False)
    assert done.returncode != 0
    assert "set it in .env" in done.stderr


def test_every_file_that_is_mounted_is_there(tmp_path: Path) -> None:
    services = json.loads(configured(tmp_path, "compose.yaml").stdout)["services"]
    sources = {Path(v["source"]) for one in services.values() for v in one.get("volumes", []) if v["type"] == "bind"}
    assert {source.name for source in sources if not source.exists()} == {"models"}


class Rehearsal:
    """The services of compose.yaml as processes of this machine.

    Args:
        services: as Docker Compose resolves them.
        folder: what stands for the file systems of the containers.
        environment: over that of the services: where PostgreSQL and S3 are here.
    """

    def __init__(self, services: Mapping[str, Any], folder: Path, environment: Mapping[str, str]) -> None:
        self.services, self.folder, self.environment = services, folder, environment
        self.ports = {"4000": str(free_port()), "3000": str(free_port())}
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def home(self, name: str) -> Path:
        return self.folder / name

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()[-3000:]

    def _here(self, text: str, name: str) -> str:
        """A word of a command as it is on this machine: folders of the container, ports, programs."""
        for there in ("/etc/curation", "/var/lib/dagster"):
            text = text.replace(there, str(self.home(name)))
        if text == "python":
            return sys.executable
        return re.sub(r"\b(4000|3000)\b", lambda found: self.ports[found[1]], text).replace("0.0.0.0", "127.0.0.1")

    def _environment(self, name: str) -> dict[str, str]:
        own = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(COMPOSE.parent.parent),
            "OMP_NUM_THREADS": "1",
            "DAGSTER_HOME": str(self.home(name)),
            "CURATION_CONFIG": str(self.home(name) / "curation.yaml"),
            "XDG_CACHE_HOME": str(self.home(name) / "cache"),
        }
        services: dict[str, str] = self.services[name]["environment"]
        return own | services | dict(self.environment)

    def command(self, name: str, words: list[str]) -> list[str]:
        return [self._here(word, name) for word in words]

    def mount(self, name: str, tiny: Callable[[str], str]) -> None:
        """Put the mounted files where the container has them; `tiny` gives a configuration for a small model."""
        for volume in self.services[name]["volumes"]:
            source = Path(volume.get("source", ""))
            if volume["type"] == "bind" and source.is_file():
                text = source.read_text().replace("port: 4000", f"port: {self.ports['4000']}")
                self.home(name).mkdir(exist_ok=True)
                place = self.home(name) / Path(volume["target"]).name
                place.write_text(tiny(text) if source.name == "curation.yaml" else text)

    def start(self, name: str) -> None:
        with (self.folder / f"{name}.log").open("a") as log:
            self.running[name] = subprocess.Popen(
                self.command(name, self.services[name]["command"]),
                cwd=self.home(name),
                env=self._environment(name),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def healthy(self, name: str) -> bool:
        """What the service's own health check says."""
        kind, *words = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        command = self.command(name, words)
        done = subprocess.run(command, env=self._environment(name), capture_output=True, check=False, timeout=60)
        return done.returncode == 0

    def wait(self, what: str, there: Callable[[], object], seconds: float = 400.0) -> None:
        began = time.monotonic()
        deadline = began + seconds
        while not there():
            logs = "\n".join(f"--- {name}\n{self.log(name)}" for name in self.running)
            assert time.monotonic() < deadline, f"{what} never came:\n{logs}"
            time.sleep(1)
        print(f"{what}: {time.monotonic() - began:.0f} s")

    def kill(self, name: str, sign: int = signal.SIGKILL) -> None:
        process = self.running.pop(name)
        os.killpg(process.pid, sign)
        process.wait(timeout=60)


@pytest.fixture
def rehearsal(tmp_path: Path, s3_server: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rehearsal]:
    """Services that are up, in the order of their conditions."""
    services = json.loads(configured(tmp_path, "compose.yaml").stdout)["services"]
    with serving_postgres() as server:
        environment = {**server.environment(), "AWS_ENDPOINT_URL": s3_server, "CODE_SERVER_HOST": "127.0.0.1"}
        made = Rehearsal(services, tmp_path, environment)
        for name in ("bucket", "code", "webserver", "daemon"):
            made.mount(name, lambda text: tiny(text, tiny_model))
        for name, value in (services["code"]["environment"] | environment).items():
            monkeypatch.setenv(name, value)
        try:
            made.start("bucket")
            assert made.running.pop("bucket").wait(timeout=60) == 0, made.log("bucket")
            for name in ("code", "webserver", "daemon"):
                made.start(name)
                made.wait(f"the health of {name}", partial(made.healthy, name))
            yield made
        finally:
            for name in list(made.running):
                made.kill(name, signal.SIGTERM)


def tiny(text: str, model: Path) -> str:
    """The example's configuration with a model that is at hand, and without a warm-up."""
    settings = yaml.safe_load(text)
    settings["targets"][0] |= {"model": str(model), "dtype": "float32", "max_length": None, "warmup": "none"}
    # Many short parts, so that a run that is killed has measured some.
    settings["engine"] = {"device": "cpu", "part_seconds": 0}
    return str(yaml.safe_dump(settings))


def land(name: str, count: int, start: int) -> None:
    """Put a shard of traces into the bucket."""
    body = "".join(json.dumps(row) + "\n" for row in rows(count, start=start, steps=9))
    boto3.client("s3").put_object(Bucket="curation", Key=f"traces/{name}", Body=body.encode())


def chosen(workspace: Workspace) -> int:
    """Rows of the subset; 0 before there is one."""
    path = "subsets/grace_20.parquet"
    return len(workspace.warehouse.read_table(path)) if workspace.warehouse.table_metadata(path) else 0


def launched(instance: dg.DagsterInstance, stage: str, *statuses: dg.DagsterRunStatus) -> list[dg.DagsterRun]:
    return list(instance.get_runs(dg.RunsFilter(tags={STAGE_TAG: stage}, statuses=list(statuses))))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_services_carry_files_through_and_outlive_the_code_server(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace.load(rehearsal.home("code") / "curation.yaml")
    land("a.jsonl", 20, 0)
    rehearsal.wait("the subset", lambda: chosen(workspace) == 4)
    with urllib.request.urlopen(f"http://127.0.0.1:{rehearsal.ports['3000']}/server_info", timeout=10) as answer:
        assert json.load(answer)["dagster_version"] == dg.__version__
    listed = boto3.client("s3").list_objects_v2(Bucket="curation", Prefix="logs/")
    assert listed["KeyCount"] > 0

    # The container with the code dies in the middle of a run; the next one says so, and what is left is measured.
    monkeypatch.setenv("DAGSTER_HOME", str(rehearsal.home("daemon")))
    with dg.DagsterInstance.get() as instance:
        land("b.jsonl", 400, 1000)
        started = dg.DagsterRunStatus.STARTED
        rehearsal.wait("a run", lambda: launched(instance, "corpus", started))
        rehearsal.kill("code")
        assert launched(instance, "corpus", started)
        rehearsal.start("code")
        rehearsal.wait("the code server's health", lambda: rehearsal.healthy("code"))
        rehearsal.wait("the end of the dead run", lambda: launched(instance, "corpus", dg.DagsterRunStatus.FAILURE))
        success = dg.DagsterRunStatus.SUCCESS
        rehearsal.wait("the file that was left", lambda: len(launched(instance, "corpus", success)) == 2)
        assert len(workspace.warehouse.read_table("corpus/raw_corpus/b.jsonl.parquet")) == 400
