"""TAGCOS's choice: matching pursuit against the problem that it solves, quotas, ties, order."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation_assets.methods.selectors.clusters import k_means
from curation_assets.methods.selectors.tagcos import LAMBDA, TOLERANCE, matching_pursuit, pursue, shares, tagcos


def plain_pursuit(rows: np.ndarray, aim: np.ndarray, most: int) -> list[int]:
    """methods.md, 5, a line at a time."""
    chosen: list[int] = []
    residual = aim.copy()
    for _ in range(most):
        if np.linalg.norm(residual) / np.linalg.norm(aim) < TOLERANCE:
            return chosen
        agreement = [float(row @ residual) for row in rows]
        best = agreement.index(max(agreement))
        if best in chosen:
            return chosen
        chosen.append(best)
        if len(chosen) == 1:
            x = np.array([rows[best] @ residual / np.linalg.norm(rows[best]) ** 2])
        else:
            while True:
                a = rows[chosen]
                x = np.linalg.inv(a @ a.T + LAMBDA * np.eye(len(chosen))) @ (a @ aim)
                if x.min() >= 0:
                    break
                dropped = chosen.pop(int(x.argmin()))
                if dropped == best:
                    return chosen
        residual = aim - sum(weight * rows[row] for weight, row in zip(x, chosen, strict=True))
    return chosen


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 12))
def test_pursuit_is_that_of_the_definition(seed: int, count: int, most: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(count, 6)) + 0.3
    assert matching_pursuit(rows, rows.mean(axis=0), most).tolist() == plain_pursuit(rows, rows.mean(axis=0), most)


def test_pursuit_finds_the_rows_that_an_aim_is_made_of() -> None:
    rows = np.eye(8) * 100.0
    aim = 3 * rows[2] + 2 * rows[5] + rows[7]
    assert matching_pursuit(rows, aim, 3).tolist() == [2, 5, 7]
    # The pairs that are not picked first leave more of it.
    left = {
        pair: np.linalg.norm(aim - aim @ rows[list(pair)].T / 1e4 @ rows[list(pair)])
        for pair in combinations(range(8), 2)
    }
    assert min(left, key=lambda pair: left[pair]) == tuple(sorted(matching_pursuit(rows, aim, 2).tolist()))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.data())
def test_a_budget_is_shared_out_whole_and_by_size(sizes: list[int], data: st.DataObject) -> None:
    budget = data.draw(st.integers(0, sum(sizes)))
    found = shares(sizes, budget)
    assert sum(found) == budget
    for size, share in zip(sizes, found, strict=True):
        assert 0 <= share <= size
        assert abs(share - budget * size / sum(sizes)) < 1


@pytest.mark.parametrize("budget", [1, 7, 40, 41, 99])
def test_the_choice_does_not_depend_on_the_order_of_rows(budget: int) -> None:
    rng = np.random.default_rng(4)
    vectors = np.concatenate([rng.normal(center, 0.2, size=(20, 5)) for center in (0, 3)]).astype(np.float32)
    ids = pl.Series([f"{number:032x}" for number in rng.permutation(40)])
    chosen = ids.gather(tagcos(vectors, ids, budget, 3, 1)).to_list()
    assert len(set(chosen)) == len(chosen) == min(budget, 40)
    shuffled = rng.permutation(40)
    again = ids.gather(shuffled)
    assert again.gather(tagcos(vectors[shuffled], again, budget, 3, 1)).to_list() == chosen


def test_each_cluster_gives_its_share() -> None:
    rng = np.random.default_rng(2)
    vectors = np.concatenate([rng.normal(-5, 0.1, size=(30, 4)), rng.normal(5, 0.1, size=(10, 4))])
    ids = pl.Series([f"{number:032x}" for number in range(40)])
    chosen = tagcos(vectors, ids, 8, 2, 0)
    assert (chosen < 30).sum() == 6
    labels, centroids = k_means(vectors, 2, 0)
    for label in (0, 1):
        own = np.flatnonzero(labels == label)
        expected = own[pursue(vectors[own], centroids[label], 6 if len(own) == 30 else 2)]
        assert chosen[labels[chosen] == label].tolist() == expected.tolist()


def test_rows_that_point_nowhere_are_taken_one_after_another() -> None:
    assert pursue(np.zeros((5, 3)), np.zeros(3), 3).tolist() == [0, 1, 2]
    assert tagcos(np.zeros((4, 3)), pl.Series(["b", "a", "d", "c"]), 2, 1, 0).tolist() == [1, 0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 30))
def test_every_round_pursues_the_same_centroid_for_what_the_quota_lacks(seed: int, quota: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(30, 4)) + 0.5
    centroid = rows.mean(axis=0)
    left, expected = list(range(30)), list[int]()
    while len(expected) < quota:
        picked = plain_pursuit(rows[left], centroid, quota - len(expected)) or [0]
        expected += [left[place] for place in picked]
        left = [row for place, row in enumerate(left) if place not in picked]
    assert pursue(rows, centroid, quota).tolist() == expected
