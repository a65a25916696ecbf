"""The Ray engine beside the local one, a killed worker, and a thousand workers in a simulation.

    python -m tests.benchmarks.scale

Both engines measure the same shards into a warehouse with two workers each on this machine, in turn, models loaded and
clusters started before the clock runs. Then one of three workers is killed in the middle of a stream: counted is what
was measured more than once. The simulation (`tests.benchmarks.scheduler`) hands the units of shards with a million
samples to 1,000 workers as the engines do and counts how much of their time they work, for lengths as GSM8K has them
and for long chains of thought with a heavy tail. `tests.benchmarks.selection_scale` chooses
from 50 million scores.

The last line is one JSON object: `ray_over_local` (times, the median over rounds), `remeasured_share_after_kill`,
`simulated_busy_share_1000` (the lower of both mixes), `selection_50m_peak_gib`.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from curation_assets.corpus.ingest import present_shards
from curation_assets.signals.engine import Engine, Lack, LocalEngine, RayEngine, stores_of
from curation_assets.signals.measure import read_shard_samples
from curation_assets.signals.scorers import model_scorer
from curation_assets.signals.store import signal_dir
from curation_assets.tables.signals import SignalName
from curation_assets.workspace.workspace import Workspace
from tests.benchmarks.common import finish, median_ratio, parser, table
from tests.benchmarks.scheduler import MIXES, Costs, shards_of, simulate
from tests.benchmarks.selection_scale import figures
from tests.models import write_tiny_model
from tests.pipeline.workspaces import make_workspace, run

SIGNALS: tuple[SignalName, ...] = ("step_gradients", "likelihoods")
WORKERS = 1_000
SHARDS = 3


def on_cluster(workspace: Workspace, workers: int) -> Workspace:
    """The workspace with so many workers of the cluster of this machine."""
    before, after = "engine: {", f"engine: {{kind: ray, address: local, workers: {workers}, "
    text = workspace.config_file.read_text().replace(before, after)
    changed = workspace.config_file.with_name(f"on-{workers}.yaml")
    changed.write_text(text)
    return Workspace.load(changed)


def records_of(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Traces of uneven lengths, up to the model's context."""
    lengths = np.random.default_rng(seed).integers(20, 400, count)
    return [
        {"prompt": f"How many, at {number}?", "response": "so many " * (int(length) // 8 + 1) + "\nAnswer: 3"}
        for number, length in enumerate(lengths)
    ]


def lacks_of(workspace: Workspace) -> Iterator[Lack]:
    """All samples of a workspace, as if nothing of them were stored."""
    for shard in present_shards(workspace):
        samples = read_shard_samples(workspace, shard, segmented=True)
        yield Lack(shard, frozenset(SIGNALS), samples.rows, samples.steps, lambda _: None)


def timed(engine: Engine, workspace: Workspace) -> float:
    """Seconds in which an engine measures all of it."""
    start = time.perf_counter()
    for _ in engine.measure(lacks_of(workspace)):
        pass
    return time.perf_counter() - start


def engines(workspace: Workspace, rounds: int) -> dict[str, list[float]]:
    """Seconds of both engines in every round; a first one is not counted."""
    seconds: dict[str, list[float]] = {"local": [], "ray": []}
    target = workspace.settings.targets[0]
    stores = stores_of(workspace, target, SIGNALS)
    scorer = model_scorer(workspace, target)
    # Two processes on the CPU stand for two devices.
    scorer.__dict__["_devices"] = ["cpu", "cpu"]
    with scorer, RayEngine(workspace, target, stores) as far:
        sides: dict[str, Engine] = {"local": LocalEngine(workspace, target, stores, scorer), "ray": far}
        for number in range(rounds + 1):
            for name in list(sides)[:: 1 if number % 2 else -1]:
                took = timed(sides[name], workspace)
                if number:
                    seconds[name].append(took)
    return seconds


def killed(workspace: Workspace) -> float:
    """The share of samples that may have been measured twice since a worker was killed in the middle.

    Counted is all that was not stored of what the worker was at, whether it had begun with it or not.
    """
    target = workspace.settings.targets[0]
    for name in SIGNALS:
        for file in workspace.warehouse.files(str(signal_dir(workspace, target, name))):
            workspace.warehouse.storage.remove(file.path)
    stores = stores_of(workspace, target, SIGNALS)
    count, found, lost = sum(len(lack.rows) for lack in lacks_of(workspace)), 0, 0
    with RayEngine(workspace, target, stores) as engine:
        for _, done in engine.measure(lacks_of(workspace)):
            found += done.samples
            if not lost and found >= count // 2:
                victim = next(actor for actor in engine._pool.actors if actor.units)
                os.kill(int(victim.process or 0), signal.SIGKILL)
                # What it was at is measured again; what waited behind it had not begun.
                unit = victim.units[0][1]
                ids = unit.source.tag.rows["sample_id"][unit.positions]
                lost = max(len(store.missing(ids)) for store in stores.values())
    ids = pl.concat([lack.rows["sample_id"] for lack in lacks_of(workspace)])
    assert found == count
    assert not any(store.missing(ids) for store in stores.values())
    return lost / count


def main() -> None:
    """Run both engines, kill a worker, simulate."""
    import ray

    given = parser(__doc__).parse_args()
    count, simulated = (40, 60_000) if given.small else (1_500, 1_000_000)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    ray.init(address="local", num_cpus=3, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    with tempfile.TemporaryDirectory() as place:
        model = write_tiny_model(Path(place) / "model", hidden=64, context=1024)
        landing = {f"{number}.jsonl": records_of(count // SHARDS, number) for number in range(SHARDS)}
        workspace = make_workspace(Path(place), model, landing, signals=SIGNALS)
        run(workspace)
        seconds = engines(on_cluster(workspace, 2), given.rounds)
        share = killed(on_cluster(workspace, 3))
    ray.shutdown()
    busy = {mix: simulate(shards_of(mix, simulated), WORKERS, Costs()).busy for mix in MIXES}
    print(table(("engine", "seconds"), [(name, round(min(own), 2)) for name, own in seconds.items()]))
    print(table(("mix", "busy share of 1,000 workers"), [(name, round(own, 4)) for name, own in busy.items()]))
    result = {
        "ray_over_local": median_ratio(seconds["ray"], seconds["local"]),
        "remeasured_share_after_kill": round(share, 4),
        "simulated_busy_share_1000": round(min(busy.values()), 4),
        "simulated_busy_shares": {name: round(own, 4) for name, own in busy.items()},
    }
    result |= figures(given.small)
    finish("scale", result, given)


if __name__ == "__main__":
    main()
