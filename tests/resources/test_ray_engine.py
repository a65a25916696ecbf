"""The Ray engine: the same results as one pass in this process; workers that die, fail or are left behind."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources import ray_engine
from resources.ray_engine import RayError, RayGroup, RayOptions, RayPool, units_of, work_of
from resources.scoring.devices import make_pass
from resources.scoring.errors import ScoringError
from resources.scoring.samples import Request, Sample, SampleSignals
from resources.scoring.spec import PassSpec
from tests.resources.odd_pass import make_odd
from tests.scoring.cases import ALL_SIGNALS, assert_same_signals, random_samples

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

TWO = RayOptions("local", workers=2)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Any]:
    """A small cluster of this module's own."""
    import ray

    ray.init(address="local", num_cpus=3, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def pool() -> Iterator[RayPool]:
    with RayPool(TWO) as made:
        yield made


def group_of(pool: RayPool, model: Path, **spec: Any) -> RayGroup[Request, SampleSignals]:
    return RayGroup(pool, make_pass, PassSpec(model, **spec))


def collect(group: Any, samples: list[Sample], request: Any = ALL_SIGNALS) -> list[Any]:
    done: list[int] = []
    found = [one for batch in group.stream(samples, request, done.append) for one in batch]
    assert sum(done) == len(samples)
    return sorted(found, key=lambda result: result.position)


@given(st.lists(st.integers(0, 3_000), max_size=60), st.integers(1, 4))
def test_units_are_even_and_the_largest_comes_first(lengths: list[int], workers: int) -> None:
    samples = [Sample(f"s{n}", [], "x" * length) for n, length in enumerate(lengths)]
    units = units_of(samples, workers)
    assert sorted(position for unit in units for position in unit.positions) == list(range(len(samples)))
    assert all([samples[p] for p in unit.positions] == unit.samples for unit in units)
    work = [work_of(sample) for unit in units for sample in unit.samples]
    assert work == sorted(work, reverse=True)
    left = sum(lengths)
    least = max(1, min(ray_engine.LEAST_CHARACTERS, left // (workers * ray_engine.SHARE_OF_REST)))
    for unit in units:
        own = sum(map(work_of, unit.samples))
        assert len(unit.samples) == 1 or own <= max(least, left // (workers * ray_engine.SHARE_OF_REST))
        left -= own
    assert left == 0


def test_two_workers_give_what_one_pass_gives(pool: RayPool, tiny_model: Path) -> None:
    samples = random_samples(23)
    expected = make_pass(PassSpec(tiny_model, batch_tokens=300), "cpu").measure(samples, ALL_SIGNALS)
    with group_of(pool, tiny_model, batch_tokens=300) as group:
        for _ in range(2):  # the workers stay for a second stream
            for found, alone in zip(collect(group, samples), expected, strict=True):
                assert_same_signals(found, alone)
    assert "2 x " in pool.device_name()


def test_a_worker_that_dies_is_replaced_and_only_its_part_is_measured_again(
    pool: RayPool, tiny_model: Path, cluster: Any
) -> None:
    samples = random_samples(40)
    with group_of(pool, tiny_model) as group:
        stream = group.stream(samples, ALL_SIGNALS)
        results = list(next(stream))
        victim = pool.actors[0]
        lost = [unit for _, unit in victim.units]
        os.kill(cluster.get(victim.handle.process.remote()), signal.SIGKILL)
        for batch in stream:
            results.extend(batch)
        assert sorted(result.position for result in results) == list(range(40))
        assert len({result.sample_id for result in results}) == 40
        assert len(lost) <= ray_engine.IN_FLIGHT


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("deadly", RayError, r"2 Ray workers died while .* from deadly on .*out of memory"),
        ("wrong", ScoringError, r"^this one is wrong$"),
        ("odd", ScoringError, r"(?s)a Ray worker failed:.*nobody expected this"),
    ],
)
def test_what_cannot_be_measured_is_an_error(pool: RayPool, name: str, error: type[Exception], said: str) -> None:
    samples = [Sample(name, [], "long" * 100), *random_samples(8)]
    group: Any = RayGroup(pool, make_odd, None)
    with pytest.raises(error, match=said):
        collect(group, samples)
    assert pool.actors == []
    # The pool can be used again.
    assert len(collect(group, random_samples(4))) == 4


def test_stopping_early_ends_the_workers(pool: RayPool) -> None:
    group: Any = RayGroup(pool, make_odd, None)
    stream = group.stream(random_samples(30), None)
    next(stream)
    stream.close()
    assert pool.actors == []


def test_no_more_is_given_than_workers_hold(pool: RayPool) -> None:
    group: Any = RayGroup(pool, make_odd, None)
    most = 0
    for _ in group.stream(random_samples(60), None):
        most = max(most, *(len(actor.units) for actor in pool.actors))
    assert 0 < most <= ray_engine.IN_FLIGHT


def test_a_cluster_without_room_is_refused(cluster: Any) -> None:
    assert cluster.is_initialized()
    with pytest.raises(RayError, match=r"asks for 50 workers, and .* has room for 3 \(0 GPUs, 3 CPUs\): lower it"):
        RayPool(RayOptions("local", workers=50))


def test_a_cluster_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refused(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refused)
    with pytest.raises(RayError, match=r"there is no Ray cluster at auto .*ray start --head"):
        RayPool(RayOptions())
