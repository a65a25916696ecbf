"""The harness itself: it sees what is lost, doubled or changed, and real faults of a few kinds are survived."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tests.faults.compare import KEYS, compare

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]


def made_up_tables() -> dict[str, pl.DataFrame]:
    """Three rows of every table, with one column beside the key."""
    made = {}
    for name, key in KEYS.items():
        columns: dict[str, list[object]] = {column: [1, 2, 3] for column in key}
        made[name] = pl.DataFrame(columns | {"value": [0.5, 1.5, 2.5]})
    return made


CHANGES: dict[str, tuple[Callable[[pl.DataFrame], pl.DataFrame], tuple[int, int, bool]]] = {
    "nothing": (lambda frame: frame, (0, 0, True)),
    "a row is lost": (lambda frame: frame.head(2), (1, 0, False)),
    "a row is there twice": (lambda frame: pl.concat([frame.head(1), frame]), (0, 1, False)),
    "a value is another": (lambda frame: frame.with_columns(pl.col("value") * 1.01), (0, 0, False)),
}


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("change", CHANGES)
def test_what_differs_is_seen(name: str, change: str) -> None:
    alter, (lost, doubled, none) = CHANGES[change]
    found = made_up_tables()
    found[name] = alter(found[name])
    difference = compare(found, made_up_tables())
    assert (difference.lost, difference.doubled, difference.none) == (lost, doubled, none)


def test_rounding_counts_in_texts_and_not_in_signals() -> None:
    for name, none in (("step_gradients", True), ("segmented_steps", False)):
        found = made_up_tables()
        found[name] = found[name].with_columns(pl.col("value") * (1 + 1e-7))
        assert compare(found, made_up_tables()).none is none


@pytest.mark.parametrize(("change", "none"), [(1e-7, True), (1e-3, False)])
def test_products_of_gradients_are_held_against_their_norms(change: float, none: bool) -> None:
    found, wanted = made_up_tables(), made_up_tables()
    for tables, product in ((found, 1e-4 + change), (wanted, 1e-4)):
        gram = pl.Series("gram", [[4.0, product, 9.0]] * 3)
        tables["step_gradients"] = tables["step_gradients"].with_columns(gram, pl.Series("norms", [[2.0, 3.0]] * 3))
    assert compare(found, wanted).none is none


@pytest.mark.slow
def test_faults_are_survived() -> None:
    kinds = ["killed", "killed_at_commit", "corrupted_part", "s3_reset"]
    command = [sys.executable, "-m", "tests.faults", "--rounds", str(len(kinds)), "--only", *kinds]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["faults_survived"] == said["rounds"] == len(kinds)
    assert said["rows_lost"] == said["rows_doubled"] == 0
    assert said["kinds"] == dict.fromkeys(sorted(kinds), 1)
