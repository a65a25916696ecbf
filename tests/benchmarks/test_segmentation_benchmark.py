"""The benchmark of segmentation runs and ends with its figures; what it measures here means nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.segmentation import STRATEGIES, corpus

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_ends_with_its_figures() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.segmentation", "--rows", "60", "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "60 traces" in done.stdout
    figures = json.loads(done.stdout.splitlines()[-1])
    speedups = [figures[f"segmentation_speedup_{strategy}"] for strategy in STRATEGIES]
    assert figures["segmentation_speedup"] == min(speedups)
    assert figures["segmentation_peak_extra_mib"] >= 0


def test_its_traces_are_many_and_different() -> None:
    made = corpus(1000)
    assert made["sample_id"].n_unique() == made["response"].n_unique() == 1000
    assert set(made["steps"].list.len()) == {8}
