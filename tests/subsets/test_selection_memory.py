"""Choosing from a few million scores takes less memory than reading them would."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from curation_assets.subsets.choose_in_duckdb import POOL_COLUMNS
from curation_assets.tables import sample_scores_dir
from curation_assets.workspace.workspace import Workspace
from tests.benchmarks.selection_scale import GIB, KINDS, in_own_process, look_at

pytestmark = pytest.mark.system

ROWS = 3_000_000
IMPORTS = 0.2 * GIB
"""Python and libraries."""

BOUND = 0.65 * GIB


@pytest.mark.slow
def test_choosing_keeps_within_a_bound_that_reading_breaks(tmp_path: Path) -> None:
    in_own_process("--write", str(tmp_path), str(ROWS))
    file = tmp_path / "curation.yaml"
    text = file.read_text()
    peaks: dict[str, float] = {}
    for kind in KINDS:
        digests = set()
        for memory in (512, 8192):
            file.write_text(f"engine: {{selection_memory_mib: {memory}}}\n{text}")
            found = json.loads(in_own_process("--choose", str(tmp_path), kind).splitlines()[-1])
            peaks.setdefault(kind, found["peak"])
            look_at(tmp_path, kind, ROWS)
            digests.add(Workspace.load(file).warehouse.table_metadata(f"subsets/{kind}.parquet")["content_digest"])
        assert len(digests) == 1
    rows = pl.scan_parquet(tmp_path / "warehouse" / sample_scores_dir("t")).select(POOL_COLUMNS).collect()
    assert max(peaks.values()) - IMPORTS < BOUND < rows.estimated_size(), (peaks, rows.estimated_size())
