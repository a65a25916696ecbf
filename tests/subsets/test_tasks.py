"""Selection over several validation sets: votes and normalised means against loops, and turns of sets."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation_assets.methods.method import ScoreInputs, ScoreSection
from curation_assets.methods.registry import METHODS
from curation_assets.methods.selectors.candidates import Candidates, Features
from curation_assets.methods.selectors.registry import selector_of
from curation_assets.methods.selectors.round_robin import round_robin
from curation_assets.methods.selectors.tasks import Tasks, by_tasks, normalised_mean, votes
from curation_assets.subsets.select import in_turns


def plain(influence: np.ndarray, count: int, aggregate: str) -> list[int]:
    """methods.md, 6, a sample and a set at a time; ids are in the order of rows."""
    samples, sets = influence.shape
    means = []
    for row in range(samples):
        scores = []
        for task in range(sets):
            own = influence[:, task]
            spread = float(np.sqrt(((own - own.mean()) ** 2).mean()))
            scores.append((influence[row, task] - own.mean()) / spread if spread else 0.0)
        means.append(round(sum(scores) / sets, 9))
    counted = [0] * samples
    for task in range(sets):
        limit = sorted(influence[:, task], reverse=True)[count - 1] if count else np.inf
        for row in range(samples):
            counted[row] += influence[row, task] >= limit
    if aggregate == "normalised_mean":
        counted = [0] * samples
    return sorted(range(samples), key=lambda row: (-counted[row], -means[row], row))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 12),
    st.integers(1, 4),
    st.data(),
    st.sampled_from(["vote", "normalised_mean"]),
)
def test_the_order_is_that_of_the_plain_loop(
    seed: int, samples: int, sets: int, data: st.DataObject, aggregate: str
) -> None:
    influence = np.random.default_rng(seed).integers(0, 5, (samples, sets)) * np.array([1.0, 10.0, 0.1, 3.0])[:sets]
    count = data.draw(st.integers(0, samples))
    found = by_tasks(influence, count, np.arange(samples), aggregate).tolist()
    expected = plain(influence, count, aggregate)
    # Means that differ by rounding may be in either order.
    means = np.round(normalised_mean(influence), 9)
    assert [means[row] for row in found] == [means[row] for row in expected]


def test_a_vote_needs_no_common_scale() -> None:
    influence = np.array([[9.0, 0.0], [1.0, 0.03], [8.0, 0.02], [0.0, 0.01]])
    assert votes(influence, 2).tolist() == [1, 1, 2, 0]
    assert by_tasks(influence, 2, np.arange(4), "vote")[0] == 2
    # The maximum over sets sees the first set alone.
    assert influence.max(axis=1).argmax() == 0


def test_the_selector_reads_the_influence_on_each_set() -> None:
    influence = {"a": [9.0, 0.0], "b": [1.0, 0.03], "c": [8.0, 0.02], "d": [0.0, 0.01]}
    pool = pl.DataFrame({"sample_id": list(influence)})
    features = Features(
        lambda ids: np.zeros((len(ids), 1)), influence=lambda ids: np.array([influence[name] for name in ids])
    )
    found = Candidates(pool, np.zeros(4), np.array([True, True, True, False]), limit=2, features=features)
    order = selector_of(Tasks()).order
    assert order is not None
    assert pool["sample_id"].gather(order(Tasks(), found).order).to_list()[0] == "c"


def test_sets_take_turns_whatever_their_size() -> None:
    first, second = np.eye(6, dtype=np.float32)[:3], np.eye(6, dtype=np.float32)[4:5]
    turns = in_turns([first, second])
    assert turns.argmax(axis=1).tolist() == [0, 4, 1, 4, 2, 4]
    assert in_turns([first]).tolist() == first.tolist()
    pool = np.repeat(np.eye(6, dtype=np.float32), 3, axis=0)
    order = round_robin(pool, turns, 6, np.arange(18))
    assert (order // 3).tolist() == [0, 4, 1, 4, 2, 4]


@pytest.mark.parametrize("aggregate", ["vote", "normalised_mean"])
def test_nothing_gives_nothing(aggregate: str) -> None:
    assert by_tasks(np.empty((0, 2)), 0, np.empty(0, dtype=np.int64), aggregate).tolist() == []


@pytest.mark.parametrize("method", ["less", "rds", "rds_plus", "embedding_similarity"])
def test_aggregations_over_the_pool_are_left_to_the_selector(method: str) -> None:
    def section(aggregate: str) -> ScoreSection:
        named = {"name": "m", "target": "t", "method": method, "validation": ["a", "b"], "aggregate": aggregate}
        return METHODS[method].section.model_validate(named)

    assert METHODS[method].default_selector(section("max")) == METHODS[method].selector
    assert METHODS[method].default_selector(section("vote")) == Tasks()
    assert METHODS[method].default_selector(section("normalised_mean")) == Tasks(aggregate="normalised_mean")


def test_similarity_is_aggregated_over_sets() -> None:
    draw = np.random.default_rng(3)
    vectors, sets = draw.normal(size=(9, 4)), {"a": draw.normal(size=(3, 4)), "b": draw.normal(size=(2, 4))}
    rows = pl.DataFrame({"sample_id": [f"{n:032x}" for n in range(9)], "vector": vectors.tolist()})
    single = {name: own.astype(np.float32) for name, own in sets.items()}

    def unit(own: np.ndarray) -> np.ndarray:
        return np.asarray(own / np.linalg.norm(own, axis=1, keepdims=True))

    of_sets = np.stack([(unit(vectors) @ unit(own).T).mean(axis=1) for own in sets.values()], axis=1)
    for aggregate, expected in (("max", of_sets.max(axis=1)), ("mean", of_sets.mean(axis=1))):
        named = {"name": "m", "target": "t", "method": "rds", "validation": ["a", "b"], "reduce": "mean"}
        section = METHODS["rds"].section.model_validate({**named, "aggregate": aggregate})
        found = METHODS["rds"].score(ScoreInputs(rows, {"embeddings_last": rows}, validation=single), section)
        assert found.values["value"].to_list() == pytest.approx(expected.tolist(), abs=1e-6)
