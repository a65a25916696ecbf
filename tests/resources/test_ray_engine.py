"""The Ray engine: the same results as one pass in this process; workers that die, fail or are left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from curation_resources.models import ray_engine
from curation_resources.models.ray_engine import RayError, RayGroup, RayOptions, RayPool
from curation_resources.scoring.devices import make_pass
from curation_resources.scoring.errors import ScoringError
from curation_resources.scoring.samples import Sample, SampleSignals
from curation_resources.scoring.spec import PassSpec
from curation_resources.scoring.units import Source, work_of
from tests.resources.odd_pass import make_odd, make_plain
from tests.scoring.cases import ALL_SIGNALS, assert_same_signals, random_samples

pytestmark = [pytest.mark.system, pytest.mark.ray, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
TWO = RayOptions("local", workers=2)


@pytest.fixture
def pool(ray_cluster: Any) -> Iterator[RayPool]:
    with RayPool(TWO) as made:
        yield made


def group_of(pool: RayPool, model: Path, **spec: Any) -> RayGroup:
    return RayGroup(pool, make_plain, PassSpec(model, **spec))


def source_of(samples: list[Sample], asked: Any = ALL_SIGNALS, name: str = "a.jsonl") -> Source[str]:
    return Source(name, [work_of(sample) for sample in samples], lambda at: [samples[one] for one in at], asked)


def collect(group: RayGroup, samples: list[Sample], asked: Any = ALL_SIGNALS) -> list[SampleSignals]:
    found: dict[int, SampleSignals] = {}
    for unit, (results, _) in group.stream([source_of(samples, asked)]):
        assert not found.keys() & set(unit.positions)
        for position, result in zip(unit.positions, results, strict=True):
            found[position] = replace(result, position=position)
    return [found[position] for position in range(len(samples))]


def test_two_workers_give_what_one_pass_gives(pool: RayPool, tiny_model: Path) -> None:
    samples = random_samples(23)
    expected = make_pass(PassSpec(tiny_model, batch_tokens=300), "cpu").measure(samples, ALL_SIGNALS)
    with group_of(pool, tiny_model, batch_tokens=300) as group:
        # The workers stay for a second stream. On a busy machine one may do it all before the other has started.
        streams, deadline = 0, time.monotonic() + 120
        while streams < 2 or "2 x " not in pool.device_name():
            assert time.monotonic() < deadline, pool.device_name()
            for found, alone in zip(collect(group, samples), expected, strict=True):
                assert_same_signals(found, alone)
            streams += 1
    assert "2 x " in pool.device_name()
    assert "(Ray)" in pool.device_name()


def test_a_worker_that_dies_is_replaced_and_only_its_part_is_measured_again(
    pool: RayPool, tiny_model: Path, ray_cluster: Any
) -> None:
    samples = random_samples(40)
    with group_of(pool, tiny_model) as group:
        stream = group.stream([source_of(samples)])
        done = [next(stream)]
        victim = next(actor for actor in pool.actors if actor.units)
        assert victim.process is not None
        os.kill(victim.process, signal.SIGKILL)
        done += stream
        assert sorted(position for unit, _ in done for position in unit.positions) == list(range(40))
        # Who measures a unit that another began with is told so.
        assert [unit for unit, (_, again) in done if again] == [unit for unit, _ in done if unit.given == 2]
        assert 0 < sum(unit.given == 2 for unit, _ in done) <= ray_engine.IN_FLIGHT


def test_units_of_several_sources_do_not_wait_for_one_another(pool: RayPool) -> None:
    group = RayGroup(pool, make_odd, None)
    read: list[str] = []

    def sources() -> Iterator[Source[str]]:
        for name in ("a", "b", "c"):
            read.append(name)
            yield source_of(random_samples(9), None, name)

    counts: dict[str, int] = {}
    for unit, results in group.stream(sources()):
        counts[unit.source.tag] = counts.get(unit.source.tag, 0) + len(results)
    assert (read, counts) == (["a", "b", "c"], {"a": 9, "b": 9, "c": 9})


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("deadly", RayError, r"2 Ray workers died while .* samples of a.jsonl .*out of memory"),
        ("wrong", ScoringError, r"^this one is wrong$"),
        ("odd", ScoringError, r"(?s)a Ray worker failed:.*nobody expected this"),
    ],
)
def test_what_cannot_be_measured_is_an_error(pool: RayPool, name: str, error: type[Exception], said: str) -> None:
    samples = [Sample(name, [], "long" * 100), *random_samples(8)]
    group = RayGroup(pool, make_odd, None)
    with pytest.raises(error, match=said):
        list(group.stream([source_of(samples)]))
    assert pool.actors == []
    # The pool can be used again.
    assert sum(len(results) for _, results in group.stream([source_of(random_samples(4))])) == 4


def test_stopping_early_ends_the_workers(pool: RayPool) -> None:
    stream = RayGroup(pool, make_odd, None).stream([source_of(random_samples(30))])
    next(stream)
    stream.close()
    assert pool.actors == []


def test_no_more_is_given_than_workers_hold(pool: RayPool) -> None:
    most = 0
    for _ in RayGroup(pool, make_odd, None).stream([source_of(random_samples(60))]):
        most = max(most, *(len(actor.units) for actor in pool.actors))
    assert 0 < most <= ray_engine.IN_FLIGHT


def test_workers_that_die_as_they_start_are_an_error(pool: RayPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine.Worker, "who", lambda _self: os._exit(1))
    with pytest.raises(RayError, match=r"3 Ray workers died at startup .*Install this package"):
        list(RayGroup(pool, make_odd, None).stream([source_of(random_samples(4))]))


NODES = """
import logging, sys
import ray
from ray.cluster_utils import Cluster
from curation_resources.models import ray_engine
from curation_resources.models.ray_engine import RayGroup, RayOptions, RayPool
from curation_resources.scoring.units import Source
from tests.resources.odd_pass import make_slow

logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s")
ray_engine.PATIENCE = 2.0
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
cluster.wait_for_nodes()
with RayPool(RayOptions(cluster.address, workers=2)) as pool:
    group = RayGroup(pool, make_slow, None)
    source = Source("a", [100] * 40, list)
    done, gone = [], 0
    for unit, measured in group.stream([source]):
        if not done:
            ray.wait([actor.who for actor in pool.actors], num_returns=2)
        done += unit.positions
        assert measured == len(unit.positions)
        if not gone and None not in [actor.name for actor in pool.actors]:
            cluster.remove_node(nodes[0])
            gone = len(done)
    assert 0 < gone < 40 and sorted(done) == list(range(40)), (gone, done)
    print("one node left:", len(done), [actor.name is not None for actor in pool.actors])
    # With no node at all it waits for room, and goes on when there is.
    cluster.remove_node(nodes[1])

    class Adds(logging.Handler):
        "Adds a node when the pool has said for the second time that it waits."

        said = 0

        def emit(self, record):
            self.said += 1
            if self.said == 2:
                cluster.add_node(num_cpus=1)

    logging.getLogger("curation").addHandler(Adds())
    assert sum(len(unit.positions) for unit, _ in group.stream([source])) == 40
    print("a node came")
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_node_that_is_gone_is_done_without_and_room_is_waited_for(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", NODES], capture_output=True, text=True, timeout=600, check=False, cwd=ROOT
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert "one node left: 40" in process.stdout
    assert "no worker is placed in the Ray cluster; waiting for room" in process.stdout
    assert "a node came" in process.stdout


def test_more_workers_than_there_is_room_for_wait_and_hold_nothing(
    ray_cluster: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert ray_cluster.is_initialized()
    with RayPool(RayOptions("local", workers=5)) as pool:
        assert "has room for 3 of 5 workers (0 GPUs, 3 CPUs); the others wait for nodes" in caplog.text
        done = [unit for unit, _ in RayGroup(pool, make_odd, None).stream([source_of(random_samples(30))])]
        assert sum(len(unit.positions) for unit in done) == 30
        assert sum(actor.name is None for actor in pool.actors) >= 2


def test_gpus_can_be_asked_for_before_there_are_any(ray_cluster: Any) -> None:
    assert ray_cluster.is_initialized()
    with RayPool(RayOptions("local", workers=2, gpus=True)) as pool:
        assert (pool.device, pool.workers) == ("cuda", 2)


def test_a_cluster_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refused(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refused)
    with pytest.raises(RayError, match=r"there is no Ray cluster at auto .*ray start --head"):
        RayPool(RayOptions())
