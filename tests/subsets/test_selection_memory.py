"""Choosing from a few million scores takes less memory than the numpy twin needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from curation_assets.workspace.workspace import Workspace
from tests.benchmarks.selection_scale import GIB, KINDS, in_own_process, look_at

pytestmark = pytest.mark.system

ROWS = 3_000_000
BOUND = 1.0 * GIB
"""Of the process, some 0.2 GiB of which are Python and libraries."""

ROOT = Path(__file__).parents[2]

IN_MEMORY = """
import sys
from pathlib import Path
from curation_assets.subsets.choose_in_duckdb import POOL_COLUMNS
from curation_assets.subsets.select import present_rows
from curation_assets.corpus.duplicates import resolve_duplicates
from curation_assets.methods.selectors.top import Top
from curation_assets.workspace.workspace import Workspace
from tests.subsets.in_memory import choose
workspace = Workspace.load(Path(sys.argv[1]) / "curation.yaml")
subset, score = workspace.settings.subset("top"), workspace.settings.score("quality")
rows, _ = present_rows(workspace, workspace.settings.target("t"))
choose(resolve_duplicates(rows.select(*POOL_COLUMNS, score="quality")), score, Top(), subset)
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024)
"""


@pytest.mark.slow
def test_choosing_keeps_within_a_bound_that_memory_breaks(tmp_path: Path) -> None:
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
    command = [sys.executable, "-c", IN_MEMORY, str(tmp_path)]
    in_memory = int(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()[-1])
    assert max(peaks.values()) < BOUND < in_memory, (peaks, in_memory)
