"""A Ray cluster as raycluster.yaml has it: reached from another process by Ray's client, with a token, head apart."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from curation_assets.workspace.workspace import Workspace
from tests.deploy.postgres import free_port
from tests.pipeline.workspaces import make_workspace, rows

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = [pytest.mark.system, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent.parent
RAYCLUSTER = ROOT / "deploy" / "kubernetes" / "raycluster.yaml"
TOKEN = "0123456789abcdef" * 4
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where a cluster is reached whose head computes nothing, and whose one worker node has two CPUs."""
    cluster = yaml.safe_load(RAYCLUSTER.read_text())["spec"]
    head = cluster["headGroupSpec"]["rayStartParams"]
    ports = [free_port() for _ in range(2)]
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        # Nodes have this package, as the image has.
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_TMPDIR": folder, "PYTHONPATH": str(ROOT)}
        environment = os.environ | own
        start = [str(BIN / "ray"), "start", "--disable-usage-stats", "--object-store-memory", "80000000", "--block"]
        begin = [*start, "--head", "--include-dashboard=false", f"--port={ports[0]}"]
        begin += [f"--ray-client-server-port={ports[1]}", *(f"--{key}={head[key]}" for key in ("num-cpus", "num-gpus"))]
        join = [*start, f"--address=127.0.0.1:{ports[0]}", "--num-cpus=2"]
        nodes = []
        try:
            for command in (begin, join):
                nodes.append(subprocess.Popen(command, env=environment, start_new_session=True))
                _wait(f"127.0.0.1:{ports[0]}", environment)
            yield f"ray://127.0.0.1:{ports[1]}"
        finally:
            for node in nodes:
                node.terminate()
            for node in nodes:
                node.wait(timeout=60)


def _wait(address: str, environment: dict[str, str]) -> None:
    """Until the cluster answers."""
    command = [str(BIN / "ray"), "health-check", "--address", address]
    for _ in range(60):
        if subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0:
            return
    raise AssertionError(f"no cluster at {address}")


def curate(workspace: Workspace, token: str) -> subprocess.CompletedProcess[str]:
    """`curate run` in a process of its own, with a token for the cluster."""
    command = [sys.executable, "-m", "curation_assets.cli", "run", "--config", str(workspace.config_file)]
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_runs_reach_the_cluster_with_its_token_and_not_without(tmp_path: Path, tiny_model: Path, address: str) -> None:
    workspace = make_workspace(tmp_path, tiny_model, {"a.jsonl": rows(4)})
    text = workspace.config_file.read_text().replace("engine: {", f"engine: {{kind: ray, address: '{address}', ")
    workspace.config_file.write_text(text)
    refused = curate(workspace, "f" * 64)
    assert refused.returncode != 0
    done = curate(workspace, TOKEN)
    for _ in range(2):
        # On a busy machine the server for clients answers long after the cluster does.
        if "connection timeout" not in done.stdout + done.stderr:
            break
        done = curate(workspace, TOKEN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b4\b", done.stdout)
    assert list((tmp_path / "warehouse" / "subsets").glob("best.parquet"))
