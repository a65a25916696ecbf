"""Facility location against the plain greedy loop, its neighbours against all pairs, its loss of coverage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curation_assets.methods.selectors import facility_location as module
from curation_assets.methods.selectors.facility_location import (
    FacilityLocation,
    coverage_of,
    facility_location,
    nearest,
)
from curation_assets.methods.vectors import UNITS, directions, similarities
from tests.subsets.orders import KINDS, check_order, chosen, pool_of, pure_cosines, some_vectors


def plain_greedy(similarity: list[list[float]], count: int) -> list[int]:
    """The definition: always the sample that raises F most, the first of equal ones."""
    covered = [0.0] * len(similarity)
    order: list[int] = []
    while len(order) < min(count, len(similarity)):
        left = [sample for sample in range(len(similarity)) if sample not in order]
        gains = [sum(max(0.0, row[j] - c) for row, c in zip(similarity, covered, strict=True)) for j in left]
        order.append(left[gains.index(max(gains))])
        covered = [max(c, row[order[-1]]) for row, c in zip(similarity, covered, strict=True)]
    return order


def rounded(vectors: NDArray[np.floating]) -> list[list[float]]:
    points = directions(vectors)
    whole: list[list[float]] = (similarities(points, points).astype(np.float64) / UNITS).tolist()
    return whole


def only_nearest(similarity: list[list[float]], neighbours: int) -> list[list[float]]:
    """Similarities to the nearest neighbours of each row, 0 to all others."""
    ranked = [sorted(range(len(row)), key=lambda j: (-row[j], j))[:neighbours] for row in similarity]
    return [
        [max(0.0, row[j]) if j in near else 0.0 for j in range(len(row))]
        for row, near in zip(similarity, ranked, strict=True)
    ]


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 30), st.integers(0, 10_000), st.sampled_from(KINDS), st.integers(1, 33))
def test_the_picks_are_those_of_the_plain_loop(count: int, seed: int, kind: str, budget: int) -> None:
    vectors = some_vectors(count, seed, kind)
    assert facility_location(vectors, budget, count, 1).tolist() == plain_greedy(rounded(vectors), budget)


@settings(max_examples=120, deadline=None)
@given(st.integers(1, 30), st.integers(0, 10_000), st.sampled_from(KINDS), st.integers(1, 33), st.integers(1, 32))
def test_picks_by_neighbours_are_those_of_the_plain_loop(
    count: int, seed: int, kind: str, budget: int, neighbours: int
) -> None:
    vectors = some_vectors(count, seed, kind)
    graph = only_nearest(rounded(vectors), neighbours)
    assert facility_location(vectors, budget, 0, neighbours).tolist() == plain_greedy(graph, budget)


@pytest.mark.parametrize("seed", range(5))
def test_by_unrounded_cosines_every_pick_has_the_largest_gain(seed: int) -> None:
    vectors = some_vectors(40, seed, "drawn")
    similarity, covered = np.maximum(pure_cosines(vectors), 0.0), np.zeros(40)
    for pick in facility_location(vectors, 40, 40, 1).tolist():
        gains = np.maximum(similarity - covered, 0.0).sum(axis=1)
        assert gains[pick] == pytest.approx(gains.max(), abs=1e-5)
        covered = np.maximum(covered, similarity[pick])


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_hundreds_of_picks(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", batch)
    monkeypatch.setattr(module, "ROWS", 100)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 16)) + 2.0 * rng.normal(size=(7, 16))[rng.integers(0, 7, 400)]
    vectors[300:] = vectors[:100]  # every gain of these is a tie
    similarity = np.maximum(np.array(rounded(vectors)), 0.0)
    covered, order = np.zeros(400), list[int]()
    while len(order) < 400:
        # fp64 sums are exact: the similarities are multiples of 2^-23.
        gains = np.maximum(similarity - covered, 0.0).sum(axis=1)
        gains[order] = -1.0
        order.append(int(gains.argmax()))
        covered = np.maximum(covered, similarity[order[-1]])
    assert facility_location(vectors, 400, 400, 1).tolist() == order
    assert facility_location(vectors, 400, 399, 400).tolist() == order


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(0, 10_000),
    st.sampled_from(KINDS),
    st.integers(1, 45),
    st.sampled_from([1, 4, 4096]),
)
def test_neighbours_are_those_of_all_pairs(count: int, seed: int, kind: str, wanted: int, some: int) -> None:
    vectors = some_vectors(count, seed, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SOME", some)
        patch.setattr(module, "ROWS", 7)
        positions, found = nearest(vectors, wanted)
    for row, similarity in enumerate(rounded(vectors)):
        ranked = sorted(range(count), key=lambda j: (-similarity[j], j))[:wanted]
        held = [(j, value * UNITS) for j in ranked if (value := similarity[j]) > 0.0]
        assert [(j, s) for j, s in zip(positions[row].tolist(), found[row].tolist(), strict=True) if s > 0.0] == held


@pytest.mark.parametrize("tight", [False, True])
def test_neighbours_that_fp32_cannot_tell_apart(tight: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if tight:
        # Exactly as many as wanted are found at first.
        monkeypatch.setattr(module, "_least", lambda product, wanted: np.sort(product, axis=1)[:, -wanted])
    # A thousand vectors within 1e-5 of each other: the fp32 products of most are equal.
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=64) + 1e-4 * rng.normal(size=(1000, 64))
    points = directions(vectors)
    exact = similarities(points, points)
    positions, found = nearest(vectors, 10)
    for row in range(1000):
        expected = np.lexsort((np.arange(1000), -exact[row]))[:10]
        assert positions[row].tolist() == expected.tolist()
        assert found[row].tolist() == exact[row, expected].tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(0, 10_000), st.sampled_from(KINDS))
def test_coverage_is_that_of_the_definition(count: int, seed: int, kind: str) -> None:
    vectors = some_vectors(count, seed, kind)
    order = np.random.default_rng(seed).permutation(count)[: count // 2 + 1]
    expected = sum(max([0.0, *(row[j] for j in order)]) for row in pure_cosines(vectors))
    assert coverage_of(vectors, order) == pytest.approx(expected, abs=1e-5)
    assert coverage_of(vectors, order[:0]) == 0.0


def test_the_graph_of_neighbours_loses_little_coverage() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(1500, 32)) + 2.0 * rng.normal(size=(20, 32))[rng.integers(0, 20, 1500)]
    dense, sparse = facility_location(vectors, 150, 1500, 1), facility_location(vectors, 150, 0, 128)
    full = coverage_of(vectors, dense)
    assert coverage_of(vectors, sparse) > 0.99 * full
    assert coverage_of(vectors, np.arange(150)) < coverage_of(vectors, sparse)


@pytest.mark.parametrize("fields", [{}, {"exact_up_to": 3, "neighbours": 4}])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 2, 19])
def test_orders(fields: dict[str, Any], kind: str, count: int) -> None:
    vectors = some_vectors(count, 5, kind)
    found = pool_of(count, 5, vectors)
    order = check_order(FacilityLocation(**fields), found)
    assert len(order) == count
    if not fields:
        ids = found.pool["sample_id"].to_list()
        by_id = sorted(range(count), key=lambda place: ids[place])
        expected = plain_greedy(rounded(vectors[by_id]), count)
        assert order == [ids[by_id[place]] for place in expected]


def test_zero_vectors_come_last_and_duplicates_follow_by_id() -> None:
    vectors = np.array([[0, 0], [1, 0], [0, 2], [3, 0], [0, 0]], dtype=np.float32)
    found = pool_of(5, 0, vectors, sample_id=["a", "d", "c", "b", "0"])
    # b and d cover the same two, c itself; then nothing is left to gain.
    assert chosen(FacilityLocation(), found) == ["b", "c", "0", "a", "d"]


@pytest.mark.parametrize("fields", [{"neighbours": 0}, {"exact_up_to": -1}, {"exact_up_to": 1.5}, {"unknown": 1}])
def test_parameters_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        FacilityLocation(**fields)
