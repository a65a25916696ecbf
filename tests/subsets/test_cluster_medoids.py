"""Cluster medoids against a loop over clusters, and on clusters that are known."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation_assets.methods.selectors.cluster_medoids import ClusterMedoids, from_clusters
from curation_assets.methods.selectors.clusters import Clusters, k_means
from tests.subsets.orders import KINDS, check_order, chosen, pool_of, some_vectors


def plain_medoids(vectors: np.ndarray, labels: list[int], centroids: np.ndarray) -> list[int]:
    """Cluster by cluster, the nearest rows first; then turn by turn, the largest cluster first."""
    clusters = []
    for label in sorted(set(labels)):
        own = [row for row in range(len(vectors)) if labels[row] == label]
        away = {row: float(((vectors[row].astype(np.float64) - centroids[label]) ** 2).sum()) for row in own}
        clusters.append((-len(own), own[0], sorted(own, key=lambda row: (away[row], row))))
    clusters.sort()
    turns = range(max((len(own) for _, _, own in clusters), default=0))
    return [own[turn] for turn in turns for _, _, own in clusters if turn < len(own)]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10_000), st.sampled_from(KINDS), st.integers(1, 6))
def test_clusters_take_turns(count: int, seed: int, kind: str, clusters: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, labels = some_vectors(count, seed, kind), rng.integers(0, clusters, count)
    centroids = rng.normal(size=(clusters, vectors.shape[1]))
    order = from_clusters(vectors, Clusters(labels, centroids))
    assert order.tolist() == plain_medoids(vectors, labels.tolist(), centroids)


@pytest.mark.parametrize("clusters", [1, 3, 100])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 2, 25])
def test_orders(count: int, kind: str, clusters: int) -> None:
    vectors = some_vectors(count, 4, kind)
    found = pool_of(count, 4, vectors)
    section = ClusterMedoids(clusters=clusters, seed=7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn finds fewer distinct points than clusters
        order = check_order(section, found)
        ids = found.pool["sample_id"].to_list()
        by_id = sorted(range(count), key=lambda place: ids[place])
        made = k_means(vectors[by_id], clusters, 7)
    expected = plain_medoids(vectors[by_id], made.labels.tolist(), made.centroids)
    assert order == [ids[by_id[place]] for place in expected]
    assert len(order) == count


def test_the_centres_of_known_clusters_come_first_largest_first() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    vectors = np.repeat(centres, (9, 20, 14), axis=0) + rng.normal(0.0, 0.5, (43, 2))
    found = pool_of(43, 0, vectors, sample_id=[f"{number:03d}" for number in range(43)])
    order = [int(name) for name in chosen(ClusterMedoids(clusters=3), found)]
    of = [0 if row < 9 else 1 if row < 29 else 2 for row in order]
    assert of[:6] == [1, 2, 0, 1, 2, 0]
    assert of[-6:] == [1] * 6
    for cluster in range(3):
        rows = [row for row, own in zip(order, of, strict=True) if own == cluster]
        away = np.linalg.norm(vectors[rows] - vectors[sorted(rows)].mean(axis=0), axis=1)
        assert (np.diff(away) >= 0).all()


@pytest.mark.parametrize("fields", [{"clusters": 0}, {"seed": -1}, {"clusters": 2.5}, {"unknown": 1}])
def test_parameters_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        ClusterMedoids(**fields)
