"""Cluster samples independently of row order: k-means of vectors, exact 2-means of numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from curation_resources.errors import UserError

ITERATIONS = 20
"""Number of k-means iterations, as in S2L and TEMP (docs/methods.md)."""

Labels = NDArray[np.int64]


class Clusters(NamedTuple):
    """The clusters of n vectors: the cluster of each vector [n], and the centroid of each cluster [k, d] in fp64."""

    labels: Labels
    centroids: NDArray[np.float64]


class ClusteringError(UserError):
    """Samples cannot be clustered."""


def k_means(vectors: NDArray[np.floating], clusters: int, seed: int, iterations: int = ITERATIONS) -> Clusters:
    """Cluster vectors [n, d] by Lloyd's algorithm from a seeded k-means++ start, in one thread.

    The result depends on the order of rows: sort them by sample_id first.

    Args:
        vectors: the vectors.
        clusters: number of clusters; there are never more than vectors.
        seed: seed of the start.
        iterations: maximum number of iterations; fewer are run once the centroids stop moving.

    Raises:
        ClusteringError: the extra `clusters` is not installed, or a vector is not finite.
    """
    if not np.isfinite(vectors).all():
        raise ClusteringError("a vector used for clustering is not finite. Measure these samples again.")
    count = min(clusters, len(vectors))
    if count < 2:
        centroid = vectors.astype(np.float64).mean(axis=0, keepdims=True) if count else np.empty((0, vectors.shape[-1]))
        return Clusters(np.zeros(len(vectors), dtype=np.int64), centroid)
    try:
        # Slow to import, and needed by few selectors only.
        from sklearn.cluster import KMeans  # type: ignore[import-untyped]  # noqa: PLC0415
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # noqa: PLC0415
    except ImportError as error:
        raise ClusteringError(
            "selectors that cluster samples need scikit-learn. Install the extra `clusters`: "
            "pip install 'curation-assets[clusters]'."
        ) from error
    # The summation order of several threads would change with their number.
    with threadpool_limits(limits=1):
        found = KMeans(count, n_init=1, max_iter=iterations, random_state=seed % 2**32).fit(vectors.astype(np.float64))
    return Clusters(found.labels_.astype(np.int64), found.cluster_centers_.astype(np.float64))


def two_means(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return which of the values [n] belong to the upper of two clusters: the split with the exact least squared error.

    All of them do if there are fewer than two distinct values.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order].astype(np.float64)
    count = len(ordered)
    # Split only between different values: equal values stay together.
    splits = np.flatnonzero(ordered[1:] > ordered[:-1]) + 1
    if not len(splits):
        return np.ones(count, dtype=np.bool_)
    sums = np.cumsum(ordered - ordered.mean())
    lower, total = sums[splits - 1], sums[-1]
    # The error falls by the variance that the two means explain: sum^2 / n on each side.
    explained = lower**2 / splits + (total - lower) ** 2 / (count - splits)
    upper = np.zeros(count, dtype=np.bool_)
    upper[order[splits[int(np.argmax(explained))] :]] = True
    return upper
