"""k-means and 2-means: against all splits, and the same whatever the order of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation_assets.methods.selectors.clusters import ClusteringError, k_means, two_means

VALUES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.25, 3.0, 8.0, 8.5]), min_size=1, max_size=12)


def squared_error(values: np.ndarray) -> float:
    return float(((values - values.mean()) ** 2).sum()) if len(values) else 0.0


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_two_means_is_the_best_of_all_splits(values: list[float]) -> None:
    own = np.array(values)
    upper = two_means(own)
    found = squared_error(own[upper]) + squared_error(own[~upper])
    best = min(
        squared_error(own[own >= limit]) + squared_error(own[own < limit]) for limit in [*set(values), max(values) + 1]
    )
    assert found == pytest.approx(best, abs=1e-9)
    if not upper.all():
        assert own[upper].min() > own[~upper].max()
    else:
        assert len(set(values)) == 1


def test_two_means_on_bimodal_values() -> None:
    draw = np.random.default_rng(0)
    low, high = draw.normal(1.0, 0.1, 300), draw.normal(3.0, 0.2, 100)
    upper = two_means(np.concatenate([low, high]))
    assert not upper[:300].any()
    assert upper[300:].all()


def test_k_means_finds_groups_and_repeats_itself() -> None:
    draw = np.random.default_rng(1)
    vectors = np.concatenate([draw.normal(center, 0.05, (40, 3)) for center in (0.0, 1.0, 2.0)])
    labels, centroids = k_means(vectors, 3, seed=5)
    assert [len(set(labels[start : start + 40])) for start in (0, 40, 80)] == [1, 1, 1]
    assert len(set(labels)) == 3
    assert np.array_equal(labels, k_means(vectors, 3, seed=5).labels)
    for label in range(3):
        assert centroids[label] == pytest.approx(vectors[labels == label].mean(axis=0))


@pytest.mark.parametrize(("rows", "clusters", "found"), [(0, 5, 0), (1, 5, 1), (3, 5, 3), (4, 1, 1)])
def test_k_means_of_few(rows: int, clusters: int, found: int) -> None:
    vectors = np.arange(rows * 2, dtype=float).reshape(rows, 2)
    labels, centroids = k_means(vectors, clusters, seed=0)
    assert len(set(labels)) == found
    assert len(centroids) == found


def test_k_means_refuses_what_is_not_finite() -> None:
    with pytest.raises(ClusteringError, match=r"not finite\. Measure these samples again"):
        k_means(np.array([[1.0], [np.nan]]), 2, seed=0)
