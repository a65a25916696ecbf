"""What-ifs of a chain of three subsets over a pool of a million samples, against a what-if of one subset.

    python -m tests.benchmarks.chains

`tests.benchmarks.recipes` calls `figures`. Nothing of the chain is stored, so that all three stages are selected: a
threshold, a combination of ranks, and the best response to each prompt. Both are alternated in one process, and the
ratio is one of CPU times. Another process does nothing but the what-if of the chain; its peak resident memory counts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from curation_assets.subsets.what_if import what_if
from curation_assets.workspace.workspace import Workspace
from tests.benchmarks.common import alternate_clocks, ratios
from tests.benchmarks.selection_scale import GIB, write_workspace

ROWS = 1_000_000
CONFIG = """\
corpus: {landing: ./landing}
warehouse: ./warehouse
targets: [{name: t, model: ./model, warmup: none, signals: [likelihoods]}]
scores:
  - {name: quality, target: t, method: random}
  - {name: complexity, target: t, method: random}
  - {name: difficulty, target: t, method: random}
subsets:
  - {name: one, score: quality, budget: {fraction: 0.2}}
  - name: hard
    score: quality
    budget: {fraction: 1}
    filters: {scores: [{score: difficulty, at_least: -0.5}]}
  - name: ranked
    from: hard
    score: {combine: {quality: 1, complexity: 1}, by: rank}
    budget: {fraction: 0.5}
  - {name: chain, from: ranked, score: quality, selector: per_prompt, budget: {fraction: 0.2}}
"""


def figures(small: bool, rounds: int) -> dict[str, object]:
    """Ratio of CPU times of a chain's what-if to that of one subset, and the chain's peak GiB."""
    rows = 20_000 if small else ROWS
    with tempfile.TemporaryDirectory() as place:
        write_workspace(Path(place), rows, CONFIG, ["complexity", "difficulty"])
        command = [sys.executable, "-m", "tests.benchmarks.chains", "--what-if", place, "chain"]
        peak = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        workspace = Workspace.load(Path(place) / "curation.yaml")
        clocks = alternate_clocks(
            {name: lambda name=name: what_if(workspace, name) for name in ("one", "chain")},  # type: ignore[misc]
            rounds,
        )
    return {
        "chain_rows": rows,
        **ratios("chain_over_one_stage", clocks["chain"], clocks["one"]),
        "chain_peak_gib": round(peak / GIB, 2),
    }


def main() -> None:
    """Print the figures, or do one what-if and print this process' peak memory in bytes."""
    if sys.argv[1:2] == ["--what-if"]:
        what_if(Workspace.load(Path(sys.argv[2]) / "curation.yaml"), sys.argv[3])
        print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024)
        return
    print(json.dumps(figures("--small" in sys.argv, 5)))


if __name__ == "__main__":
    main()
