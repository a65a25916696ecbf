"""What a corpus of any size costs: measured per sample, shard, partition and release, and carried on to a billion.

    python -m tests.benchmarks.at_scale

A small corpus is measured with a tiny model, so that what is left is what does not shrink with the model: reading and
recording shards, units on their way to workers, Dagster's events, requests to S3 (moto's server counts them), bytes.
Each figure is the slope between two sizes. With these costs the scheduler is simulated (`tests.benchmarks.scheduler`):
1,000 workers and a billion samples, served by one run, and by several that share them.

The last line is one JSON object: `run_seconds_per_shard`, `run_seconds_per_sample`, `run_seconds_per_unit`,
`seconds_per_partition`, `requests_per_shard`, `bytes_per_sample` by table, `release_seconds_per_row`,
`index_bytes_per_sample`, and `simulated`: by mix and number of runs, the share of time that workers work.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from curation_assets import tables
from curation_assets.corpus.ingest import present_shards
from curation_assets.signals.engine import Lack, RayEngine, stores_of, work_of_rows
from curation_assets.signals.measure import Visit, read_shard_samples, records_of
from curation_assets.signals.parts import Done
from curation_assets.tables.signals import SignalName
from curation_assets.workspace.workspace import Workspace
from curation_resources.models.ray_engine import RayGroup, RayOptions, RayPool
from curation_resources.scoring import units
from curation_resources.scoring.units import Source, UnitQueue
from curation_resources.storage.part_index import PartIndex
from tests.benchmarks.common import finish, parser, table
from tests.benchmarks.orchestration import measured_workspace, our_seconds
from tests.benchmarks.scheduler import MIXES, Costs, Outcome, shards_of, simulate
from tests.models import write_tiny_model
from tests.pipeline.workspaces import make_workspace, release_subset, run, use_bucket
from tests.s3 import new_bucket, serve_s3, watched

SIGNALS: tuple[SignalName, ...] = ("step_gradients", "likelihoods")
WORKERS = 1_000
RATE = 40_000
"""Characters that a simulated worker measures in a second: about 10,000 tokens."""

T = TypeVar("T")


def records(count: int, seed: int) -> list[dict[str, str]]:
    """Traces of seven steps, some 450 characters each."""
    made = []
    for number in range(count):
        lines = [f"Step {k}: {number} + {k} = {number + k}, so there are {number + k} of them." for k in range(1, 8)]
        response = "\n".join([*lines, f"Answer: {number + 3}"])
        made.append({"prompt": f"How many apples are there at {seed} and {number}?", "response": response})
    return made


def slope(small: float, large: float, sizes: Sequence[int]) -> float:
    """What one more costs."""
    return (large - small) / (sizes[1] - sizes[0])


def seconds(work: Any) -> float:
    """The quickest of five tries."""
    tries = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        tries.append(time.perf_counter() - start)
    return min(tries)


def of_shards(workspace: Workspace, sizes: Sequence[int]) -> dict[str, float]:
    """What a run itself does for a shard whose units workers have measured: seconds a shard, and a sample."""
    took = [
        seconds(lambda shard=shard: _before(workspace, shard)) + min(_after(workspace, shard) for _ in range(5))
        for shard in present_shards(workspace)
    ]
    each = slope(took[0], took[1], sizes)
    return {"run_seconds_per_sample": each, "run_seconds_per_shard": max(0.0, took[0] - each * sizes[0])}


def _before(workspace: Workspace, shard: str) -> None:
    """Read a shard, see what is missing of it, and cut it into units."""
    read = read_shard_samples(workspace, shard, segmented=True)
    for store in stores_of(workspace, workspace.settings.targets[0], SIGNALS).values():
        store.missing(read.rows["sample_id"])
    queue = UnitQueue([Source(shard, work_of_rows(read.rows), list)], WORKERS)
    while queue.next() is not None:
        pass


def _after(workspace: Workspace, shard: str) -> float:
    """Seconds of recording a shard, from the parts that workers leave: one for each unit."""
    target = workspace.settings.targets[0]
    samples, stores = read_shard_samples(workspace, shard, segmented=True), stores_of(workspace, target, SIGNALS)
    ids = samples.rows["sample_id"]
    for store in stores.values():
        rows = store.rows(ids)
        assert rows is not None
        each = max(1, len(rows) * units.MOST_CHARACTERS // max(1, sum(work_of_rows(samples.rows))))
        for start in range(0, len(rows), each):
            store.append(rows[start : start + each])
    began = time.perf_counter()
    for store in stores.values():
        store.compact(ids)
    records_of(workspace, target, Visit(shard, samples, {signal: set() for signal in SIGNALS}), stores, _Nobody())
    return time.perf_counter() - began


class _Nobody(RayEngine):
    """An engine that has measured nothing."""

    def __init__(self) -> None: ...

    def device_name(self) -> str:
        return ""


class Echo:
    """A pass that takes no time."""

    def measure(self, payload: Any, _asked: object, _again: bool) -> Done:
        return Done(len(payload.rows), 0, True)


def make_echo(_spec: object, _device: str) -> Echo:
    """Make the pass that takes no time."""
    return Echo()


def of_units(workspace: Workspace, count: int) -> float:
    """What a run itself does for a unit on its way to a worker of Ray and back: processor seconds."""
    from curation_assets.signals.engine import _part

    shard = present_shards(workspace)[-1]
    samples = read_shard_samples(workspace, shard, segmented=True)
    lack = Lack(shard, frozenset(SIGNALS), samples.rows, samples.steps, lambda _: None)
    work = work_of_rows(samples.rows)
    each = max(1, len(work) * units.MOST_CHARACTERS // sum(work))
    positions = [place % len(work) for place in range(each * count)]

    def payload(chosen: Sequence[int]) -> Any:
        return _part(lack, [positions[place] for place in chosen])

    source = Source(shard, [work[place] for place in positions], payload)
    with RayPool(RayOptions("local", workers=2)) as pool, RayGroup(pool, make_echo, None) as group:
        list(group.stream([Source(shard, work[:each], lambda chosen: _part(lack, chosen))]))
        start, given = time.process_time(), sum(1 for _ in group.stream([source]))
        return (time.process_time() - start) / given


def of_partitions(place: Path, sizes: Sequence[int]) -> float:
    """What Dagster takes for a shard, all its assets and checks: seconds."""
    took = []
    for number in sizes:
        measured = measured_workspace(place / f"measured-{number}", number)
        took.append(min(our_seconds(measured, place / f"run-{number}-{again}") for again in range(2)))
    return slope(took[0], took[1], sizes)


def of_requests(place: Path, model: Path, sizes: Sequence[int]) -> dict[str, float]:
    """Requests to S3 that one more shard costs: a first run, a look by a new process, a look by one that stays."""
    found: list[dict[str, int]] = []
    with serve_s3() as server:
        for number in sizes:
            use_bucket(new_bucket(server))
            shards = {f"{n:03d}.jsonl": records(3, 1_000 + n) for n in range(number)}
            made = make_workspace(place / f"bucket-{number}", model, shards, signals=SIGNALS)
            counts = {}
            with watched() as seen:
                first, second = Workspace.load(made.config_file), Workspace.load(made.config_file)
                for name, one in (("first_run", first), ("new_process", second), ("same_process", second)):
                    seen.clear()
                    run(one)
                    counts[name] = len(seen)
            found.append(counts)
        use_bucket(None)
    return {name: round(slope(found[0][name], found[1][name], sizes), 2) for name in found[0]}


def of_tables(workspace: Workspace) -> dict[str, float]:
    """Bytes a sample takes in each kind of table."""
    shard = present_shards(workspace)[-1]
    count = workspace.warehouse.read_table(f"{tables.raw_corpus_dir()}/{shard}.parquet").height
    target = workspace.settings.targets[0]
    folders = {
        "raw_corpus": tables.raw_corpus_dir(),
        "segmented_steps": tables.segmented_steps_dir(),
        "sample_scores": tables.sample_scores_dir(target.name),
        "step_scores": tables.step_scores_dir(target.name, workspace.settings.scores[0].name),
    }
    sizes = {
        name: sum(workspace.warehouse.storage.sizes(folder, [f"{shard}.parquet"]).values())
        for name, folder in folders.items()
    }
    for signal, store in stores_of(workspace, target, SIGNALS).items():
        ids = workspace.warehouse.read_table(f"{tables.raw_corpus_dir()}/{shard}.parquet")["sample_id"]
        sizes[signal] = store.size_of(store.parts_of(ids))
    return {name: round(size / count, 1) for name, size in sizes.items()}


def of_releases(workspace: Workspace, sizes: Sequence[int]) -> dict[str, float]:
    """Seconds and bytes that a row of a release takes, and seconds of a release by itself."""
    text = workspace.config_file.read_text().replace(
        "subsets:\n",
        "subsets:\n"
        + "".join(f"  - {{name: of_{number}, score: grace, budget: {{samples: {number}}}}}\n" for number in sizes),
    )
    workspace.config_file.write_text(text)
    made = Workspace.load(workspace.config_file)
    run(made)
    # A first release loads what all of them need.
    release_subset(made)
    took, size = [], []
    for number in sizes:
        start = time.perf_counter()
        release, _ = release_subset(made, f"of_{number}")
        took.append(time.perf_counter() - start)
        size.append(sum(file.stat().st_size for file in Path(release.folder).rglob("*") if file.is_file()))
    each = slope(took[0], took[1], sizes)
    return {
        "release_seconds_per_row": each,
        "release_seconds": max(0.0, took[0] - each * sizes[0]),
        "release_bytes_per_row": slope(size[0], size[1], sizes),
    }


def of_index(count: int) -> dict[str, float]:
    """Memory of the index of what is measured, and the time of a look for a shard's samples in it."""
    index = PartIndex()
    for part in range(count // 100_000):
        numbers = pl.int_range(part * 100_000, (part + 1) * 100_000, eager=True)
        index.add({f"part-{part}": numbers.hash(seed=3).cast(pl.String)})
    asked = pl.int_range(0, 5_000, eager=True).hash(seed=3).cast(pl.String)
    look = seconds(lambda: index.find(asked))
    return {
        "index_bytes_per_sample": index._held.estimated_size() / len(index),
        "index_look_seconds_per_million": look / (len(index) / 1e6),
    }


def simulated(costs: Costs, samples: int, shard_samples: int) -> dict[str, dict[str, Outcome]]:
    """By mix and number of runs: each run has its part of workers and shards."""
    found: dict[str, dict[str, Outcome]] = {}
    for mix in MIXES:
        for runs in (1, 8, 40):
            shards = shards_of(mix, samples // runs, shard_samples)
            outcome = simulate(shards, WORKERS // runs, costs)
            found.setdefault(mix, {})[str(runs)] = outcome
            print(f"{mix}, {runs} runs: {outcome}", flush=True)
    return found


def main() -> None:
    """Measure, and simulate."""
    made = parser(__doc__)
    made.add_argument("--samples", type=int, default=None, help="of the simulation; default: a billion")
    given = made.parse_args()
    small = given.small
    samples = given.samples or (200_000 if small else 1_000_000_000)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # The server's word on every request.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    sizes = (20, 60) if small else (500, 4_000)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model = write_tiny_model(place / "model", hidden=32)
        landing = {name: records(size, seed) for name, size, seed in (("a", sizes[0], 1), ("b", sizes[1], 2))}
        workspace = make_workspace(
            place / "shards", model, {f"{name}.jsonl": rows for name, rows in landing.items()}, signals=SIGNALS
        )
        run(workspace)
        result |= of_shards(workspace, sizes)
        result["run_seconds_per_unit"] = of_units(workspace, 4 if small else 100)
        result["seconds_per_partition"] = of_partitions(place, (1, 2) if small else (20, 60))
        result["requests_per_shard"] = of_requests(place, model, (1, 2) if small else (4, 12))
        result["bytes_per_sample"] = of_tables(workspace)
        result |= of_releases(workspace, (20, 40) if small else (200, 4_000))
    result |= of_index(200_000 if small else 20_000_000)
    costs = Costs(
        RATE, result["run_seconds_per_unit"], result["run_seconds_per_shard"], result["run_seconds_per_sample"]
    )
    outcomes = simulated(costs, samples, 1_000 if small else 50_000)
    rows = [
        (mix, runs, round(one.seconds / 3600, 2), round(one.busy, 3), round(one.run_busy, 3))
        for mix, own in outcomes.items()
        for runs, one in own.items()
    ]
    print(table(("mix", "runs", "hours", "workers busy", "run busy"), rows))
    result["simulated"] = {
        mix: {runs: round(one.busy, 4) for runs, one in own.items()} for mix, own in outcomes.items()
    }
    finish("at_scale", result, given)


if __name__ == "__main__":
    main()
