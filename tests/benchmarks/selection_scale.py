"""Peak memory of choosing 20 % of 50 million scored samples: `tests.benchmarks.scale` calls `figures`.

    python -m tests.benchmarks.selection_scale           # all three; --only top, per_prompt, stratified

`sample_scores` are written in parts by one process: a hundred shards, four responses to a prompt, some samples twice.
Another process does nothing but `write_subset`; its peak resident memory counts, Python and libraries included. What it
wrote is looked at afterwards. The last line is one JSON object; `selection_50m_peak_gib` is that of `top`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray

from curation_assets import tables
from curation_assets.signals.held_out import validation_key
from curation_assets.subsets.select import write_subset
from curation_assets.workspace.fingerprints import shard_scores_fingerprint
from curation_assets.workspace.workspace import Workspace

GIB = 2**30
ROWS = 50_000_000
SHARDS = 100
RESPONSES = 4
TWICE = 1_000
"""Of so many samples of a shard one is in the next shard, too."""

KINDS = {
    "top": "selector: {kind: top}",
    "per_prompt": "selector: {kind: per_prompt}",
    "stratified": "selector: {kind: top}, stratify: [source, length]",
}
CONFIG = """\
corpus: {landing: ./landing}
warehouse: ./warehouse
targets: [{name: t, model: ./model, warmup: none, signals: [likelihoods]}]
scores: [{name: quality, target: t, method: random}]
subsets:
"""
SUBSET = "  - {{name: {}, score: quality, budget: {{fraction: 0.2}}, {}}}\n"


def ids_of(numbers: NDArray[np.uint64], salt: int) -> pl.Series:
    """Ids of 32 hexadecimal digits as hashes of numbers give them."""
    words = np.empty((len(numbers), 2), dtype=np.uint64)
    for place in range(2):
        state = numbers + np.uint64(0x9E3779B97F4A7C15 * (2 * salt + place + 1) % 2**64)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        words[:, place] = state ^ (state >> np.uint64(31))
    held = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(words), [None, pa.py_buffer(words)])
    made = pl.from_arrow(held.cast(pa.binary()))
    assert isinstance(made, pl.Series)
    return made.bin.encode("hex")


def shard_rows(number: int, size: int) -> pl.DataFrame:
    """One shard of `sample_scores`, with some samples of the shard before it."""
    draw = np.random.default_rng(number)
    numbers = np.arange(number * size, (number + 1) * size, dtype=np.uint64)
    if number:
        numbers[::TWICE] -= np.uint64(size - 1)
    frame = pl.DataFrame(
        {
            "sample_id": ids_of(numbers, 0),
            # The responses to a prompt lie in several shards.
            "prompt_id": ids_of(numbers % np.uint64(size * SHARDS // RESPONSES), 1),
            "row": np.arange(size),
            "source": pl.Series(np.array(["gsm8k", "math", "aqua", "code", "web"])[draw.integers(0, 5, size)]),
            "n_steps": draw.integers(2, 12, size, dtype=np.int32),
            "response_tokens": draw.gamma(4.0, 100.0, size).astype(np.int32),
            "answer_norm": draw.gamma(2.0, 1.0, size).astype(np.float32),
            "quality": draw.normal(size=size).round(6),
        }
    ).with_columns(
        shard=pl.lit(f"{number:03d}.jsonl"),
        candidate=pl.lit(0, dtype=pl.Int32),
        correct=pl.lit(None, dtype=pl.Boolean),
        verified=pl.lit(None, dtype=pl.Boolean),
        domain=pl.lit(None, dtype=pl.String),
        generator=pl.lit(None, dtype=pl.String),
        reward=pl.lit(None, dtype=pl.Float64),
        flags=pl.lit([], dtype=pl.List(pl.String)),
    )
    return tables.SAMPLE_SCORES.conform(frame)


def write_workspace(folder: Path, rows: int, config: str = "", others: Sequence[str] = ()) -> None:
    """A configuration with scores that are up to date, and what they rest on as far as choosing looks at it.

    Args:
        folder: where it goes.
        rows: rows of the pool, copies included.
        config: the configuration; default: a subset for each of KINDS.
        others: names of further scores, with random values.
    """
    from tests.models import write_tiny_model  # and with it torch, which no process that chooses loads

    (folder / "landing").mkdir()
    write_tiny_model(folder / "model", hidden=16, context=64)
    subsets = "".join(SUBSET.format(name, how) for name, how in KINDS.items())
    (folder / "curation.yaml").write_text(config or CONFIG + subsets)
    workspace = Workspace.load(folder / "curation.yaml")
    target, size = workspace.settings.target("t"), rows // SHARDS
    manifest = []
    for number in range(SHARDS):
        shard = f"{number:03d}.jsonl"
        steps = {"fingerprint": shard}
        fingerprint = shard_scores_fingerprint(
            workspace, target, "signals", shard, [""], validation_key(workspace, target)
        )
        workspace.warehouse.write_table(
            f"{tables.segmented_steps_dir()}/{shard}.parquet", tables.SEGMENTED_STEPS.empty(), steps
        )
        scores = f"{tables.sample_scores_dir('t')}/{shard}.parquet"
        frame = shard_rows(number, size)
        draw = np.random.default_rng([1, number])
        frame = frame.with_columns(**{name: pl.Series(draw.normal(size=size).round(4)) for name in others})
        workspace.warehouse.write_table(scores, frame, {"fingerprint": fingerprint})
        manifest.append(
            {
                "shard": shard,
                "path": shard,
                "content_digest": shard,
                "present": True,
                "signal_fingerprint": "signals",
                "score_fingerprint": fingerprint,
                "rows": size,
                "rejected": 0,
                "tokens": 0,
            }
        )
    made = tables.SCORE_MANIFEST.conform(pl.DataFrame(manifest))
    workspace.warehouse.write_table(tables.score_manifest_path("t"), made, {"fingerprint": "scores"})


def choose(folder: Path, kind: str) -> None:
    """Write a subset; print seconds and peak memory of this process, which does nothing else."""
    workspace = Workspace.load(folder / "curation.yaml")
    started = time.perf_counter()
    write_subset(workspace, workspace.settings.subset(kind))
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    print(json.dumps({"seconds": time.perf_counter() - started, "peak": peak}))


def look_at(folder: Path, kind: str, rows: int) -> None:
    """See that what was written is what was asked for, in order."""
    written = pl.scan_parquet(folder / "warehouse" / tables.subset_path(kind))
    in_order = (pl.col("score").diff().fill_null(0) <= 0).all(), (pl.col("rank").diff().fill_null(1) == 1).all()
    found = written.select(pl.len(), *in_order, pl.col("sample_id").n_unique().alias("distinct")).collect().row(0)
    # A thousandth of them, less those of the first shard, are copies.
    pool = rows // SHARDS * SHARDS - (SHARDS - 1) * -(-(rows // SHARDS) // TWICE)
    assert found == (-(-pool // 5), True, True, -(-pool // 5)), found


def in_own_process(*arguments: str) -> str:
    """What this module prints in a new process."""
    command = [sys.executable, "-m", "tests.benchmarks.selection_scale", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def figures(small: bool, kinds: Sequence[str] = ("top",)) -> dict[str, object]:
    """Peak GiB and seconds of choosing, by kind; `small`: of few rows, to see that it runs."""
    rows = 20_000 if small else ROWS
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as place:
        in_own_process("--write", place, str(rows))
        if small:
            file = Path(place) / "curation.yaml"
            file.write_text(f"engine: {{rows_in_memory: 0}}\n{file.read_text()}")
        for kind in kinds:
            told = json.loads(in_own_process("--choose", place, kind).splitlines()[-1])
            print(f"{kind}: {told}", flush=True)
            look_at(Path(place), kind, rows)
            name = "" if kind == "top" else f"_{kind}"
            found[f"selection_50m{name}_peak_gib"] = round(told["peak"] / GIB, 2)
            found[f"selection_50m{name}_seconds"] = round(told["seconds"])
    return found


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--write"]:
        write_workspace(Path(sys.argv[2]), int(sys.argv[3]))
        return
    if sys.argv[1:2] == ["--choose"]:
        choose(Path(sys.argv[2]), sys.argv[3])
        return
    from tests.benchmarks.common import finish, parser, table

    arguments = parser(__doc__)
    arguments.add_argument("--only", choices=list(KINDS), help="one of the selections")
    options = arguments.parse_args()
    found = figures(options.small, list(KINDS) if options.only is None else [options.only])
    print(table(("figure", "value"), list(found.items())))
    finish("selection_scale", found, options, options.only)


if __name__ == "__main__":
    main()
