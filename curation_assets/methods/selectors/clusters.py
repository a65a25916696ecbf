"""Clusters of samples: k-means of vectors, exact 2-means of numbers; the same whatever the order of rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from curation_resources.errors import UserError

ITERATIONS = 20
"""Of k-means, as S2L and TEMP have it (methods.md)."""

Labels = NDArray[np.int64]


class ClusteringError(UserError):
    """Samples cannot be clustered."""


def k_means(vectors: NDArray[np.floating], clusters: int, seed: int) -> Labels:
    """The cluster [n] of each vector [n, d]: Lloyd's algorithm from a seeded k-means++ start, in one thread.

    Rows count in the order in which they are given: sort them by sample_id first.

    Raises:
        ClusteringError: the extra `clusters` is not installed, or a vector is not finite.
    """
    if not np.isfinite(vectors).all():
        raise ClusteringError("a vector that samples are clustered by is not finite: measure these samples again")
    count = min(clusters, len(vectors))
    if count < 2:
        return np.zeros(len(vectors), dtype=np.int64)
    try:
        # Slow to import, and needed by two selectors only.
        from sklearn.cluster import KMeans  # type: ignore[import-untyped]  # noqa: PLC0415
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # noqa: PLC0415
    except ImportError as error:
        raise ClusteringError(
            "selectors that cluster samples need scikit-learn: install the extra `clusters` "
            "(pip install 'curation-assets[clusters]')"
        ) from error
    # Several threads add up in an order that changes with their number.
    with threadpool_limits(limits=1):
        found = KMeans(count, n_init=1, max_iter=ITERATIONS, random_state=seed % 2**32).fit(vectors.astype(np.float64))
    labels: Labels = found.labels_.astype(np.int64)
    return labels


def two_means(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which of the values [n] belong to the upper of two clusters: the split with the least squared error, exactly.

    All of them do where there are not two different values.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order].astype(np.float64)
    count = len(ordered)
    # A split lies between two different values: equal ones are never torn apart.
    splits = np.flatnonzero(ordered[1:] > ordered[:-1]) + 1
    if not len(splits):
        return np.ones(count, dtype=np.bool_)
    sums = np.cumsum(ordered - ordered.mean())
    lower, total = sums[splits - 1], sums[-1]
    # The error falls by what the two means explain: sum^2 / n of each side.
    explained = lower**2 / splits + (total - lower) ** 2 / (count - splits)
    upper = np.zeros(count, dtype=np.bool_)
    upper[order[splits[int(np.argmax(explained))] :]] = True
    return upper
