"""What is paid when a measured corpus grows by 1 %, or a shard comes again with 1 % of its rows changed.

    python -m tests.benchmarks.incremental

A corpus of synthetic traces is measured with a small Qwen2 of random weights (GRACE's Gram matrices and likelihoods) by
the main job, as `curate run` runs it. Then a file with 1 % new rows lands, and is carried through; then a shard is
uploaded again with 1 % of its rows changed. Each run is a fresh process. Measuring time is the seconds of the visits to
shards; a run's fixed start (the model is loaded on first use) is measured by runs that measure one sample each, and
their median is taken off both sides.

The last line is one JSON object: `extra_tokens_new` and `extra_tokens_changed` (tokens measured beyond those of the
rows that are new), `cost_share_1_percent_new` and `cost_share_1_percent_changed` (measuring time over that of the first
run, and over that of the shard's part of it), `fixed_start_s`, `first_run_s`.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from curation_assets.tables import raw_corpus_dir
from curation_assets.workspace.workspace import Workspace
from tests.benchmarks.common import finish, parser, table
from tests.models import write_tiny_model

ROOT = Path(__file__).parents[2]
SHARDS = 2
FIXED_RUNS = 3
CONFIG = """\
corpus: {landing: ./landing}
warehouse: ./warehouse
targets:
  - {name: small, model: ./model, warmup: none, max_length: 2048, signals: [step_gradients, likelihoods]}
scores:
  - {name: grace, target: small, method: grace}
subsets:
  - {name: best, score: grace, budget: {fraction: 0.2}}
engine: {device: cpu}
"""
RUN = """
import json, sys
from pathlib import Path
from curation_assets.defs.instance import open_instance
from curation_assets.defs.main_job import MainJob
from curation_assets.signals.store import signal_dir
from curation_assets.workspace.workspace import Workspace

workspace = Workspace.load(Path(sys.argv[1]))
with open_instance(workspace) as instance:
    summary = MainJob(workspace, instance).run()
target = workspace.settings.targets[0]
folder = signal_dir(workspace, target, target.signals[0])
records = {}
for name in workspace.warehouse.documents(f"{folder}/shards"):
    records[name] = workspace.warehouse.read_json(f"{folder}/shards/{name}.json")
print(json.dumps({"tokens": summary.tokens_measured, "records": records}))
"""
Trace = dict[str, str]


def traces(count: int, seed: str) -> list[Trace]:
    """Distinct traces of some hundred bytes in steps."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        a, b = draw.randint(2, 999), draw.randint(2, 999)
        steps = [
            f"Step {k}: {a} times {k} is {a * k}, and {b} more makes {a * k + b}." for k in range(1, draw.randint(4, 8))
        ]
        text = "\n".join([*steps, f"Answer: {a + b}"])
        made.append({"prompt": f"({seed}, {number}) What is {a} + {b}?", "response": text})
    return made


def land(folder: Path, name: str, rows: Sequence[Trace]) -> None:
    """Write a landing file that is long settled."""
    path = folder / "landing" / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.utime(path, (time.time() - 3600,) * 2)


def run(folder: Path) -> dict[str, Any]:
    """One run in a fresh process; what it measured, its records by shard, and the seconds of its visits.

    Raises:
        SystemExit: it failed; the message holds its last words.
    """
    command = [sys.executable, "-c", RUN, str(folder / "curation.yaml")]
    before = time.time()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"a run failed:\n{done.stderr[-3000:]}")
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    said["wall"] = time.time() - before
    return said


def tokens_of(workspace: Workspace, prompts: Sequence[str]) -> int:
    """Tokens of the samples with these prompts, as the signal's table has them."""
    from curation_assets.subsets.stored_tables import read_stored

    corpus = workspace.warehouse.scan(raw_corpus_dir())
    assert corpus is not None
    asked = [json.dumps([{"role": "user", "content": prompt}], separators=(",", ":")) for prompt in prompts]
    ids = corpus.filter(pl.col("messages").is_in(asked)).select("sample_id").unique()
    rows = read_stored(workspace, "likelihoods").join(ids, on="sample_id", how="semi").collect()
    assert len(rows) == len(prompts), (len(rows), len(prompts))
    return int(rows["tokens"].sum())


def seconds_of(said: dict[str, Any], *shards: str) -> float:
    """Seconds of the visits to these shards."""
    return sum(float(said["records"][f"{shard}.jsonl"]["seconds"]) for shard in shards)


def measure(folder: Path, count: int, fixed_runs: int) -> dict[str, object]:
    """All runs of one round."""
    (folder / "curation.yaml").write_text(CONFIG)
    shards = {f"part-{n}": traces(count // SHARDS, f"part {n}") for n in range(SHARDS)}
    for name, rows in shards.items():
        land(folder, name, rows)
    first = run(folder)
    alone = []
    for number in range(fixed_runs):
        land(folder, f"one-{number}", traces(1, f"one {number}"))
        alone.append(seconds_of(run(folder), f"one-{number}"))
    fixed = statistics.median(alone)
    new = traces(max(1, count // 100), "new")
    land(folder, "new", new)
    grown = run(folder)
    workspace = Workspace.load(folder / "curation.yaml")
    changed = [dict(row) for row in shards["part-0"]]
    touched = random.Random(0).sample(range(len(changed)), max(1, len(changed) // 100))
    for position in touched:
        changed[position]["prompt"] += " Think."
    land(folder, "part-0", changed)
    again = run(folder)
    # The visit that measured first of all loaded the model, as the run of one sample did.
    first_seconds = seconds_of(first, *shards) - fixed
    shard_seconds = seconds_of(first, "part-1")
    return {
        "samples": count,
        "extra_tokens_new": grown["tokens"] - tokens_of(workspace, [row["prompt"] for row in new]),
        "cost_share_1_percent_new": round((seconds_of(grown, "new") - fixed) / first_seconds, 4),
        "extra_tokens_changed": again["tokens"]
        - tokens_of(workspace, [changed[position]["prompt"] for position in touched]),
        "cost_share_1_percent_changed": round((seconds_of(again, "part-0") - fixed) / shard_seconds, 4),
        "fixed_start_s": round(fixed, 2),
        "fixed_starts_s": [round(seconds, 2) for seconds in alone],
        "first_run_s": round(first_seconds, 2),
        "walls_s": [round(said["wall"], 1) for said in (first, grown, again)],
    }


def main() -> None:
    """Run it and print what was paid."""
    given = parser(__doc__)
    options = given.parse_args()
    count, hidden = (400, 32) if options.small else (40_000, 128)
    with tempfile.TemporaryDirectory(prefix="curation-incremental-") as name:
        folder = Path(name)
        write_tiny_model(folder / "model", hidden=hidden, context=2048)
        result = measure(folder, count, 1 if options.small else FIXED_RUNS)
    print(table(("figure", "value"), list(result.items())))
    finish("incremental", result, options)


if __name__ == "__main__":
    main()
