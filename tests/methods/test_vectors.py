"""Choosing by embeddings: K-center greedy, round robin and cosines against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curation_assets.methods import vectors as vectors_module
from curation_assets.methods.selectors import k_center as k_center_module
from curation_assets.methods.selectors import round_robin as round_robin_module
from curation_assets.methods.selectors.k_center import k_center
from curation_assets.methods.selectors.round_robin import round_robin
from curation_assets.methods.vectors import UNITS, cosines, directions, similarities, unit

Array = NDArray[np.float64]


def slow_k_center(vectors: Array, count: int, first: int, rank: list[int]) -> list[int]:
    chosen = [first]
    while len(chosen) < min(count, len(vectors)):
        best, far = -1, -1.0
        for i in range(len(vectors)):
            if i in chosen:
                continue
            nearest = min(float(((vectors[i] - vectors[j]) ** 2).sum()) for j in chosen)
            if nearest > far or (nearest == far and rank[i] < rank[best]):
                best, far = i, nearest
        chosen.append(best)
    return chosen


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 45), st.integers(0, 10_000), st.sampled_from([3, 4, 512]))
def test_k_center_is_the_loop(n: int, count: int, seed: int, front: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, 5)) + 3.0
    first, rank = int(rng.integers(n)), rng.permutation(n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(k_center_module, "FRONT", front)
        patch.setattr(k_center_module, "ROWS", 7)
        found = k_center(vectors, count, first, rank).tolist()
    assert found == slow_k_center(vectors, count, first, rank.tolist())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 25), st.integers(0, 10_000), st.sampled_from([2, 3, 512]))
def test_equally_far_samples_come_by_their_ids(n: int, seed: int, front: int) -> None:
    # Points of a small grid: most distances are equal, and some points are.
    rng = np.random.default_rng(seed)
    vectors = rng.integers(0, 2, size=(n, 3)).astype(np.float64)
    vectors -= vectors.mean(axis=0).round()
    rank = rng.permutation(n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(k_center_module, "FRONT", front)
        found = k_center(vectors, n, 0, rank).tolist()
    assert sorted(found) == list(range(n))
    # Rounding may tell equal distances apart: each pick is as far as the farthest.
    for place in range(1, n):
        distances = [min(((vectors[i] - vectors[j]) ** 2).sum() for j in found[:place]) for i in found[place:]]
        assert distances[0] == pytest.approx(max(distances), abs=1e-4)


def test_copies_come_last_and_by_id() -> None:
    vectors = np.zeros((6, 4))
    vectors[0], vectors[1] = 1.0, -1.0
    assert k_center(vectors, 6, 0, np.array([0, 1, 5, 4, 3, 2])).tolist() == [0, 1, 5, 4, 3, 2]


def slow_round_robin(similarity: Array, limit: int, rank: list[int], lose_turns: bool) -> list[int]:
    n, m = similarity.shape
    lists = [sorted(range(n), key=lambda i: (-similarity[i, j], rank[i])) for j in range(m)]
    order: list[int] = []
    while len(order) < min(limit, n) and any(lists):
        for mine in lists:
            while mine and not lose_turns and mine[0] in order:
                mine.pop(0)
            if mine:
                found = mine.pop(0)
                if found not in order and len(order) < limit:
                    order.append(found)
    return order


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 45), st.integers(0, 9999), st.booleans(), st.booleans())
def test_round_robin_is_the_loop(n: int, m: int, limit: int, seed: int, lose_turns: bool, few: bool) -> None:
    rng = np.random.default_rng(seed)
    # Few distinct directions make ties.
    vectors = rng.normal(size=(4, 3))[rng.integers(0, 4, n)] if few else rng.normal(size=(n, 3))
    validation = rng.normal(size=(m, 3))
    rank = rng.permutation(n)
    similarity = np.concatenate([block for _, block in cosines(vectors, validation)]).astype(np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(round_robin_module, "SPARE", 1)
        patch.setattr(round_robin_module, "GUESS", 5)
        found = round_robin(vectors, validation, limit, rank, lose_turns).tolist()
    assert found == slow_round_robin(similarity, limit, rank.tolist(), lose_turns)


def test_lists_that_end_too_early_are_made_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_robin_module, "SPARE", 1)
    monkeypatch.setattr(vectors_module, "ROWS_BYTES", 40_000)
    rng = np.random.default_rng(0)
    vectors, rank = rng.normal(size=(3000, 4)), rng.permutation(3000)
    # All validation samples want the same ones, so every list is needed far down.
    validation = np.tile(rng.normal(size=4), (50, 1)) + 1e-3 * rng.normal(size=(50, 4))
    similarity = np.concatenate([block for _, block in cosines(vectors, validation)]).astype(np.float64)
    found = round_robin(vectors, validation, 400, rank).tolist()
    assert found == slow_round_robin(similarity, 400, rank.tolist(), lose_turns=False)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 2100), st.integers(1, 40), st.integers(0, 9999))
def test_cosines_are_right_and_the_same_to_the_bit_alone(n: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, others = rng.normal(size=(n, 24)), rng.normal(size=(m, 24))
    found = np.concatenate([block for _, block in cosines(vectors, others)])
    norms = np.linalg.norm(vectors, axis=1)[:, None] * np.linalg.norm(others, axis=1)
    np.testing.assert_allclose(found, vectors @ others.T / norms, atol=1e-5)
    for place in (0, n // 2, n - 1):
        ((_, alone),) = cosines(vectors[place : place + 1], others)
        np.testing.assert_array_equal(alone[0], found[place])
        ((_, one),) = cosines(vectors[place : place + 1], others[m - 1 :])
        np.testing.assert_array_equal(one[0, 0], found[place, m - 1])


def test_a_zero_vector_has_cosine_zero() -> None:
    assert unit(np.zeros((1, 3))).tolist() == [[0.0, 0.0, 0.0]]


@given(st.integers(1, 30), st.integers(1, 64), st.integers(0, 10_000))
def test_similarities_are_whole_numbers_that_do_not_depend_on_other_rows(n: int, d: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(n, d)) * 100.0
    vectors[0] = 0.0
    points = directions(vectors)
    found = similarities(points, points)
    assert np.array_equal(found, np.rint(found))
    assert np.array_equal(found, found.T)
    assert np.abs(found).max() <= UNITS
    assert not found[0].any()
    lengths = np.maximum(np.linalg.norm(vectors, axis=1), 1e-300)
    assert np.abs(found / UNITS - vectors @ vectors.T / lengths / lengths[:, None]).max() < 1e-6
    for row in range(n):
        assert np.array_equal(similarities(points[row : row + 1], points[: row + 1])[0], found[row, : row + 1])
