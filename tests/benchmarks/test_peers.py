"""The comparison with peers runs, at a tiny size; nothing is downloaded or installed for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.peers import CACHE, PEERS, ROOT, Peer, python_of, wanted

pytestmark = pytest.mark.system


def result_of(*arguments: str) -> dict[str, float]:
    """The last line of the comparison."""
    command = [sys.executable, "-m", "tests.benchmarks.peers", "--small", "--rounds", "1", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.slow
def test_our_sides_run_in_processes_of_their_own() -> None:
    result = result_of("--peers")
    assert result["speedup_over_less_loop"] > 0
    assert result["grace_over_forward"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PEERS))
def test_a_peer_gives_the_gradients_of_the_loop(name: str) -> None:
    if python_of(PEERS[name], CACHE) is None:
        pytest.skip(f"no environment of {name}: `python -m tests.benchmarks.peers` makes it")
    result = result_of("--peers", name)  # which ends with an error if the norms differ
    assert result[f"{name}_over_forward"] > 0


def test_an_environment_made_from_something_else_is_not_used(tmp_path: Path) -> None:
    peer = PEERS["traker"]
    assert python_of(peer, tmp_path) is None
    (tmp_path / peer.name).mkdir()
    mark = tmp_path / peer.name / "made-from.txt"
    mark.write_text(wanted(Peer(peer.name, "traker==0.1", peer.sides)))
    assert python_of(peer, tmp_path) is None
    mark.write_text(wanted(peer))
    assert python_of(peer, tmp_path) == tmp_path / peer.name / "bin" / "python"
