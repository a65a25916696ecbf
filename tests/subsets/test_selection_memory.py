"""Choosing from a few million scores within a bound that choosing in memory breaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from curation_assets.workspace.workspace import Workspace
from tests.benchmarks.selection_scale import GIB, KINDS, in_own_process, look_at

pytestmark = pytest.mark.system

ROWS = 3_000_000
BOUND = 1.1 * GIB
"""Of the process, some 0.25 GiB of which are Python and libraries."""


@pytest.mark.slow
def test_choosing_on_disk_keeps_within_a_bound_that_memory_breaks(tmp_path: Path) -> None:
    in_own_process("--write", str(tmp_path), str(ROWS))
    file = tmp_path / "curation.yaml"
    text = file.read_text()
    peaks: dict[str, dict[str, float]] = {}
    digests: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for way, rows in (("disk", 1_000_000), ("memory", 10_000_000)):
        engine = f"engine: {{rows_in_memory: {rows}, selection_memory_mib: 512}}\n"
        file.write_text(engine + text)
        warehouse = Workspace.load(file).warehouse
        peaks[way] = {}
        for kind in KINDS:
            peaks[way][kind] = json.loads(in_own_process("--choose", str(tmp_path), kind).splitlines()[-1])["peak"]
            look_at(tmp_path, kind, ROWS)
            digests[kind].add(warehouse.table_metadata(f"subsets/{kind}.parquet")["content_digest"])
    assert max(peaks["disk"].values()) < BOUND < min(peaks["memory"].values()), peaks
    assert all(len(found) == 1 for found in digests.values())
