"""Visits to shards on an engine that takes them in ahead: nothing twice, and no shard is done before all of it is."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, cast

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from curation_assets.config.running_settings import Limits
from curation_assets.config.settings import Target
from curation_assets.signals.engine import Lack
from curation_assets.signals.measure import ShardSamples, Visits
from curation_assets.signals.parts import Done
from curation_assets.signals.store import SignalStore
from curation_assets.tables import SEGMENTED_STEPS
from curation_assets.workspace.limits import Allowance

TARGET = Target(name="t", model="m", warmup="none", signals=["likelihoods"])


class Held:
    """A store that knows ids alone."""

    def __init__(self, stored: set[str]) -> None:
        self.stored = stored

    def missing(self, sample_ids: pl.Series) -> set[str]:
        return set(sample_ids) - self.stored


class Ahead:
    """An engine that takes everything in first, and measures it one by one in an order of its own."""

    device_count = 1

    def __init__(self, store: Held, order: Any) -> None:
        self.store, self.order, self.measured = store, order, list[str]()

    def device_name(self) -> str:
        return "none"

    def measure(self, lacks: Iterable[Lack]) -> Generator[tuple[Lack, Done], None, None]:
        units = [(lack, name) for lack in lacks for name in lack.rows["sample_id"]]
        self.order.shuffle(units)
        for lack, name in units:
            self.measured.append(name)
            self.store.stored.add(name)
            yield lack, Done(1, 10, True)


SHARDS = st.lists(st.sets(st.sampled_from("abcdefgh"), max_size=5), max_size=5)


@given(SHARDS, st.sets(st.sampled_from("abcdefgh")), st.randoms(use_true_random=False), st.integers(1, 9))
def test_nothing_twice_and_no_shard_before_its_end(
    shards: list[set[str]], stored: set[str], order: Any, tokens: int
) -> None:
    store = Held(set(stored))
    engine = Ahead(store, order)
    inputs = [
        (str(number), ShardSamples(pl.DataFrame({"sample_id": sorted(ids)}, {"sample_id": pl.String}), STEPS, "", ""))
        for number, ids in enumerate(shards)
    ]
    allowance = Allowance(Limits(tokens=10 * tokens))
    stores = cast("dict[Any, SignalStore]", {"likelihoods": store})
    ended = []
    for visit in Visits(TARGET, inputs, stores, engine, allowance).run():
        # Whoever hears of a shard finds all of it stored.
        assert shards[int(visit.name)] <= store.stored
        ended.append(int(visit.name))
    assert len(engine.measured) == len(set(engine.measured)) <= tokens
    assert not set(engine.measured) & stored
    left = {int(shard) for _, shard in allowance.unfinished}
    assert sorted([*ended, *left]) == list(range(len(shards)))
    # What is left lacks something, or waited for a shard that does.
    lacking = {number for number in left if not shards[number] <= store.stored}
    assert all(any(shards[number] & shards[other] for other in lacking) for number in left)


STEPS = SEGMENTED_STEPS.empty()
