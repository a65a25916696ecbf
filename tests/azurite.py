"""Microsoft's emulator of Azure Blob Storage, Azurite, for the tests; npx installs it where npm is available."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The emulator's fixed account, as documented by Microsoft."""

START_SECONDS = 240


@pytest.fixture(scope="session")
def azurite() -> Iterator[str]:
    """The address of the emulator's account; the test is skipped where it cannot be installed."""
    installed = shutil.which("azurite-blob")
    npx = shutil.which("npx")
    if installed is None and npx is None:
        pytest.skip("neither azurite nor npm is installed")
    program = [installed] if installed is not None else [str(npx), "--yes", "--package", "azurite@3", "azurite-blob"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--inMemoryPersistence"]
    process = subprocess.Popen(
        [*program, *options, "--blobPort", str(port)], start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        _wait_for(process, port)
        yield f"http://127.0.0.1:{port}/{ACCOUNT}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    pytest.skip("azurite does not start: npm may be without network")


@pytest.fixture
def container(azurite: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty container, which the environment says how to reach."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", azurite)
    name = f"container-{uuid.uuid4().hex}"
    _create(azurite, name)
    return f"az://{name}"


def _create(azurite: str, name: str) -> None:
    """Create a container, which obstore cannot do, with a request signed by the account's key."""
    headers = {"x-ms-date": datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"), "x-ms-version": "2021-08-06"}
    shown = "\n".join(f"{key}:{value}" for key, value in sorted(headers.items()))
    text = "PUT" + "\n" * 12 + f"{shown}\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)).decode()
    headers |= {"Authorization": f"SharedKey {ACCOUNT}:{signature}", "Content-Length": "0"}
    request = urllib.request.Request(f"{azurite}/{name}?restype=container", method="PUT", headers=headers)
    urllib.request.urlopen(request).close()
