"""Rows into `raw_corpus`, and what Dagster costs beside, against the tools that people would use instead.

    python -m tests.benchmarks.ingest

Reading: 1,000,000 rows of 2 KB as JSON lines in eight files, from file to Parquet. Ours validates, normalises and
hashes each row and accounts for it; Polars' `scan_ndjson().sink_parquet()` and datatrove's JSONL reader to Parquet
writer do nothing of the kind. Each side is a fresh process every round; datatrove has an environment of its own,
made once with pip in a cache folder, and the better of one worker and one a core.

Orchestration: `curate run` over 100 shards of 5 rows whose signals have been measured before, on a fresh Dagster home,
against a bare Dagster graph of as many assets and checks, partitioned alike, in which each asset writes one small
file a partition.

The last line is one JSON object. Ratios are medians over rounds: `speedup_over_datatrove` and
`share_of_bare_polars` are their times over ours, `overhead_over_bare_dagster` ours over the bare graph's;
`peak_gib` is the most memory that our process ever held.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.common import finish, median_ratio, parser, table
from tests.benchmarks.orchestration import bare_seconds, measured_workspace, our_seconds
from tests.benchmarks.peers import CACHE, ROOT, WORKERS, Peer, make_environment

DATATROVE = Peer("datatrove", "datatrove[io]==0.10.1", ("datatrove",))
FILES = 8


def write_rows(folder: Path, count: int) -> None:
    """Distinct rows of about 2 KB in files of equal size: a prompt, a response in steps, and fields beside."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(3000)]
    texts = []
    for _ in range(500):
        steps: list[str] = []
        while sum(map(len, steps)) < 1600:
            steps.append(f"Step {len(steps) + 1}: {' '.join(draw.choices(words, k=18))} = {draw.randint(1, 999)}.")
        texts.append((" ".join(draw.choices(words, k=30)), "\n".join(steps)))
    for file in range(FILES):
        with (folder / f"part-{file}.jsonl").open("w") as stream:
            for number in range(file, count, FILES):
                prompt, response = texts[number % len(texts)]
                row = {
                    "id": f"row-{number}",
                    "prompt": f"{prompt} {number}?",
                    "response": f"{response}\nAnswer: {number}",
                    "answer": str(number),
                    "source": "made",
                    "domain": "algebra",
                    "model": "m-7b",
                    "is_correct": draw.random() < 0.7,
                    "meta": {"split": "train", "score": draw.random()},
                }
                stream.write(json.dumps(row) + "\n")


def timed(command: list[str], folder: Path) -> dict[str, float]:
    """Run a side with a fresh output folder; what it says at the end.

    Raises:
        SystemExit: it failed; the message holds its last words.
    """
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    environment = {**os.environ, "XDG_CACHE_HOME": str(out / "cache")}
    done = subprocess.run(
        [part.replace("OUT", str(out)) for part in command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    said: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return said


def read_rounds(folder: Path, count: int, rounds: int, with_datatrove: bool) -> dict[str, list[dict[str, float]]]:
    """What every side said in every round; the order turns from round to round."""
    source = folder / "in"
    source.mkdir()
    write_rows(source, count)
    sides = {
        side: [sys.executable, "-m", "tests.benchmarks.ingest_sides", side, str(source), "OUT"]
        for side in ("ours", "polars")
    }
    if with_datatrove:
        python = str(make_environment(DATATROVE, CACHE))
        script = str(WORKERS / "datatrove_worker.py")
        for workers in sorted({1, os.cpu_count() or 1}):
            sides[f"datatrove, {workers} at once"] = [python, script, str(source), "OUT", str(workers)]
    said: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(rounds):
        turn = number % len(sides)
        for side in [*sides, *sides][turn : turn + len(sides)]:
            said[side].append(timed(sides[side], folder))
    return said


def reading(folder: Path, rows: int, rounds: int, with_datatrove: bool) -> dict[str, object]:
    """Figures of reading."""
    said = read_rounds(folder, rows, rounds, with_datatrove)
    seconds = {side: [one["seconds"] for one in answers] for side, answers in said.items()}
    result: dict[str, object] = {
        "rows": rows,
        "share_of_bare_polars": median_ratio(seconds["polars"], seconds["ours"]),
        "peak_gib": round(max(one["peak_gib"] for one in said["ours"]), 3),
    }
    peers = [side for side in seconds if side.startswith("datatrove")]
    if peers:
        best = min(peers, key=lambda side: statistics.median(seconds[side]))
        result["speedup_over_datatrove"] = median_ratio(seconds[best], seconds["ours"])
        result["datatrove_best"] = best
    medians = [
        (side, round(statistics.median(times), 2), round(max(one["peak_gib"] for one in said[side]), 2))
        for side, times in seconds.items()
    ]
    print(table(("side", "seconds (median)", "peak GiB"), medians))
    return result


def orchestration(folder: Path, shards: int, rounds: int) -> dict[str, object]:
    """Figures of orchestration."""
    workspace = measured_workspace(folder / "measured", shards)
    pairs = [
        (our_seconds(workspace, folder / f"ours-{n}"), bare_seconds(workspace, folder / f"bare-{n}", shards))
        for n in range(rounds)
    ]
    print(table(("ours, s", "bare Dagster, s"), [(round(a, 2), round(b, 2)) for a, b in pairs]))
    return {"shards": shards, "overhead_over_bare_dagster": median_ratio(*zip(*pairs, strict=True))}


def main() -> None:
    """Run all sides and print what they took."""
    options = parser(__doc__)
    options.add_argument("--rows", type=int, help="rows to read; default 1,000,000, with --small 4,000")
    options.add_argument("--no-datatrove", action="store_true", help="leave datatrove out: it needs pip and an index")
    options.add_argument("--only", choices=("reading", "orchestration"), help="one part alone")
    given = options.parse_args()
    rows = given.rows or (4_000 if given.small else 1_000_000)
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="curation-ingest-") as name:
        folder = Path(name)
        if given.only != "orchestration":
            result |= reading(folder, rows, given.rounds, not given.no_datatrove and not given.small)
        if given.only != "reading":
            result |= orchestration(folder, 10 if given.small else 100, given.rounds)
    finish("ingest", result, given, given.only)


if __name__ == "__main__":
    main()
