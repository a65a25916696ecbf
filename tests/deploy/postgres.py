"""A private PostgreSQL server for tests, from the programs that Debian's package `postgresql` installs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

USER, PASSWORD, DATABASE = "curation", "not-a-secret", "curation"
ACCOUNT = "postgres"
"""Who runs the server where tests run as root, which PostgreSQL refuses."""


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def programs() -> Path:
    """The folder of initdb and pg_ctl; the test is skipped where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    named = shutil.which("initdb")
    if named is not None:
        found.append(Path(named).resolve())
    if not found:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    return found[-1].parent


@dataclass(frozen=True)
class Server:
    """A server on this machine.

    Attributes:
        programs: where initdb and pg_ctl lie.
        folder: of its data.
        port: that it listens on.
    """

    programs: Path
    folder: Path
    port: int

    def make(self) -> None:
        """Make an empty cluster with one user, who has a password."""
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        data = str(self.folder / "data")
        options = ["--username", USER, "--pwfile", str(secret), "--auth", "scram-sha-256", "--encoding", "UTF8"]
        self._do("initdb", "--pgdata", data, "--no-sync", *options)
        self.start()
        environment = os.environ | {"PGPASSWORD": PASSWORD}
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--username", USER]
        subprocess.run(
            [str(self.programs / "createdb"), *address, DATABASE], env=environment, check=True, capture_output=True
        )

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        log = str(self.folder / "log")
        self._do("pg_ctl", "start", "--wait", "--pgdata", str(self.folder / "data"), "--log", log, "--options", options)

    def stop(self) -> None:
        """End it: who is connected is cut off."""
        self._do("pg_ctl", "stop", "--wait", "--mode", "fast", "--pgdata", str(self.folder / "data"))

    def environment(self) -> dict[str, str]:
        """What the deployments' dagster.yaml read."""
        return {
            "DAGSTER_PG_USERNAME": USER,
            "DAGSTER_PG_PASSWORD": PASSWORD,
            "DAGSTER_PG_HOST": "127.0.0.1",
            "DAGSTER_PG_PORT": str(self.port),
            "DAGSTER_PG_DB": DATABASE,
        }

    def _do(self, program: str, *options: str) -> None:
        command = [str(self.programs / program), *options]
        if os.geteuid() == 0:
            command = ["runuser", "--user", ACCOUNT, "--", *command]
        # Its own output to a file: a server that inherits a pipe keeps it open.
        with (self.folder / "commands").open("a+") as said:
            done = subprocess.run(command, stdout=said, stderr=said, check=False, cwd=self.folder)
            said.seek(0)
            assert done.returncode == 0, said.read()


@contextmanager
def serving_postgres() -> Iterator[Server]:
    """A server with an empty database. Its folder is none of pytest's: these are closed to its account."""
    found = programs()
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if os.geteuid() == 0:
        shutil.chown(folder, ACCOUNT, ACCOUNT)
    server = Server(found, folder, free_port())
    try:
        server.make()
        yield server
        server.stop()
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            server.stop()
        shutil.rmtree(folder)
