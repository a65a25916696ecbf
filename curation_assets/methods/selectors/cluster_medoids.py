"""Cluster medoids: of each k-means cluster the sample nearest to its centre, then the second nearest, and so on.

This is the plain baseline for choosing by embeddings. Clusters and distances are Euclidean, on the vectors as they are:
a longer vector is farther from others, and a zero vector is a point like any other.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from curation_assets.methods.selectors.candidates import (
    Candidates,
    Choice,
    Positions,
    Selector,
    VectorSelector,
    features_of,
    tie_rank,
)
from curation_assets.methods.selectors.clusters import Clusters, k_means


class ClusterMedoids(VectorSelector):
    """Select, from each k-means cluster of embeddings in turn, the sample nearest to its centre, then the next.

    The largest cluster comes first. A cluster that runs out is passed over, so that any budget can be filled.
    """

    kind: Literal["cluster_medoids"] = "cluster_medoids"
    clusters: int = Field(100, ge=1, description="K of k-means; at most as many as candidates are made")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of k-means")


def from_clusters(vectors: NDArray[np.floating], found: Clusters) -> Positions:
    """Return the order in which rows are taken, given their clusters.

    Args:
        vectors: embeddings [n, d]; equally near ones are ordered by position.
        found: the cluster of each row, and the centroids.
    """
    sizes = np.bincount(found.labels, minlength=len(found.centroids))
    turn, first = np.empty((2, len(vectors)), dtype=np.int64)
    for label in np.unique(found.labels):
        own = np.flatnonzero(found.labels == label)
        away = vectors[own].astype(np.float64) - found.centroids[label]
        nearest = own[np.argsort((away**2).sum(axis=1), kind="stable")]
        turn[nearest] = np.arange(len(own))
        first[own] = own[0]
    # Clusters of equal size are ordered by their first row.
    order: Positions = np.lexsort((first, -sizes[found.labels], turn)).astype(np.int64)
    return order


def _cluster_medoids(selector: ClusterMedoids, found: Candidates) -> Choice:
    features, places = features_of(selector.kind, found), np.flatnonzero(found.may)
    if not len(places):
        return Choice(places)
    # k-means depends on the order of rows.
    places = places[np.argsort(tie_rank(found.pool["sample_id"].gather(places)))]
    vectors = features.vectors(found.pool["sample_id"].gather(places))
    return Choice(places[from_clusters(vectors, k_means(vectors, selector.clusters, selector.seed))])


SELECTORS = [Selector(ClusterMedoids, _cluster_medoids, vectors=True, needs="embeddings")]
