"""The Ray engine beside the local one, a killed worker, and a thousand workers in a simulation.

    python -m tests.benchmarks.scale

Both engines measure the same samples with two workers each on this machine, in turn, models loaded and clusters started
before the clock runs. Then one of three workers is killed in the middle of a stream: counted is what was measured more
than once. The simulation hands units of a million samples to 1,000 workers as the engine does (`even_units`, so many in
flight) and counts how much of their time they work, for lengths as GSM8K has them and for long chains of thought with a
heavy tail. `tests.benchmarks.selection_scale` chooses from 50 million scores.

The last line is one JSON object: `ray_over_local` (times, the median over rounds), `remeasured_share_after_kill`,
`simulated_busy_share_1000` (the lower of both mixes), `selection_50m_peak_gib`.
"""

from __future__ import annotations

import heapq
import logging
import os
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resources.ray_engine import IN_FLIGHT, RayGroup, RayOptions, RayPool, even_units
from resources.scoring.devices import DeviceGroup, make_pass
from resources.scoring.samples import Request, Sample, SampleSignals
from resources.scoring.spec import PassSpec
from tests.benchmarks.common import finish, median_ratio, parser, table
from tests.benchmarks.selection_scale import figures
from tests.models import write_tiny_model

REQUEST = Request(step_gradients="bias", likelihoods=True)
WORKERS = 1_000


def samples_of(count: int, seed: int = 0) -> list[Sample]:
    """Samples of uneven lengths, up to the model's context."""
    lengths = np.random.default_rng(seed).integers(20, 400, count)
    prompt = [{"role": "user", "content": "How many?"}]
    return [Sample(f"s{number}", prompt, "so many " * (int(length) // 8 + 1)) for number, length in enumerate(lengths)]


def timed(stream: Callable[[], Any]) -> float:
    """Seconds that a stream takes to its end."""
    start = time.perf_counter()
    for _ in stream():
        pass
    return time.perf_counter() - start


def engines(model: Path, samples: Sequence[Sample], rounds: int) -> dict[str, list[float]]:
    """Seconds of both engines in every round; a first one is not counted."""
    seconds: dict[str, list[float]] = {"local": [], "ray": []}
    spec = PassSpec(model)
    with RayPool(RayOptions("local", workers=2)) as pool, DeviceGroup(spec, ["cpu", "cpu"]) as local:
        far: RayGroup[Request, SampleSignals] = RayGroup(pool, make_pass, spec)
        sides: dict[str, Callable[[], Any]] = {
            "local": lambda: local.stream(samples, REQUEST),
            "ray": lambda: far.stream(samples, REQUEST),
        }
        for number in range(rounds + 1):
            for name in list(sides)[:: 1 if number % 2 else -1]:
                took = timed(sides[name])
                if number:
                    seconds[name].append(took)
    return seconds


def killed(model: Path, samples: Sequence[Sample], cluster: Any) -> float:
    """The share of samples that were measured more than once since a worker was killed in the middle."""
    with RayPool(RayOptions("local", workers=3)) as pool:
        group: RayGroup[Request, SampleSignals] = RayGroup(pool, make_pass, PassSpec(model))
        stream, found, lost = group.stream(samples, REQUEST), 0, 0
        for batch in stream:
            found += len(batch)
            if not lost and found >= len(samples) // 2:
                victim = pool.actors[0]
                # What it was at is measured again; what waited behind it had not begun.
                lost = len(victim.units[0][1].samples) if victim.units else 1
                os.kill(cluster.get(victim.handle.process.remote()), signal.SIGKILL)
        assert found == len(samples)
    return lost / len(samples)


def busy_share(work: Sequence[int], workers: int = WORKERS) -> float:
    """How much of their time workers work until the last of them is done, each holding so many units in flight."""
    waiting = deque(sum(work[position] for position in unit) for unit in even_units(work, workers))
    held = [[waiting.popleft() for _ in range(IN_FLIGHT) if waiting] for _ in range(workers)]
    ends = [(units.pop(0), worker) for worker, units in enumerate(held) if units]
    heapq.heapify(ends)
    last = 0.0
    while ends:
        now, worker = heapq.heappop(ends)
        last = max(last, now)
        if waiting:
            held[worker].append(waiting.popleft())
        if held[worker]:
            heapq.heappush(ends, (now + held[worker].pop(0), worker))
    return sum(work) / (workers * last)


def mixes(count: int) -> dict[str, list[int]]:
    """Characters of samples: as GSM8K has them, and long chains of thought, one in a hundred of which is very long."""
    draw = np.random.default_rng(1)
    short = draw.lognormal(6.0, 0.4, count)
    long = np.where(draw.random(count) < 0.01, draw.uniform(60_000, 400_000, count), draw.lognormal(9.0, 0.8, count))
    return {"gsm8k": short.astype(int).tolist(), "long": np.minimum(long, 400_000).astype(int).tolist()}


def main() -> None:
    """Run both engines, kill a worker, simulate."""
    import ray

    given = parser(__doc__).parse_args()
    count, simulated = (40, 60_000) if given.small else (1_500, 1_000_000)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    ray.init(address="local", num_cpus=3, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    with tempfile.TemporaryDirectory() as place:
        model = write_tiny_model(Path(place) / "model", hidden=64, context=1024)
        samples = samples_of(count)
        seconds = engines(model, samples, given.rounds)
        share = killed(model, samples, ray)
    ray.shutdown()
    busy = {name: busy_share(work) for name, work in mixes(simulated).items()}
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
