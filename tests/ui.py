"""`curate ui` for tests: the real web server and daemon, started and stopped."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class UI:
    """A running `curate ui`.

    Attributes:
        address: of its web server.
        log: what it and its runs said.
    """

    address: str
    log: Path

    def wait_for(self, what: str, there: Callable[[], object], seconds: float = 600) -> None:
        """Look once a second until something is there.

        Raises:
            AssertionError: it never came; the message holds the end of the log.
        """
        deadline = time.monotonic() + seconds
        while not there():
            assert time.monotonic() < deadline, f"{what} never came:\n{self.log.read_text()[-3000:]}"
            time.sleep(1)


@contextmanager
def serving(config: Path, log: Path, home: Path | None = None) -> Iterator[UI]:
    """`curate ui` on a free port.

    Args:
        config: the configuration file.
        log: the file for what it says.
        home: DAGSTER_HOME; default: beside the configuration.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "curate"), "ui", "--config", str(config), "--port", str(port)]
    environment = dict(os.environ)
    environment.pop("DAGSTER_HOME", None)
    if home is not None:
        environment["DAGSTER_HOME"] = str(home)
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=config.parent, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            yield UI(f"http://127.0.0.1:{port}", log)
        finally:
            os.killpg(process.pid, 15)
            process.wait(timeout=60)
