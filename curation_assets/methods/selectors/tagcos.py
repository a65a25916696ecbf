"""TAGCOS's selection: clusters of gradient features; each contributes the few that sum to its centroid.

See docs/methods.md, "LESS, TAGCOS, GraNd and EL2N".
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from curation_assets.methods.selectors.candidates import Candidates, Choice, Selector, SelectorSection, features_of
from curation_assets.methods.selectors.clusters import Clusters, k_means

LAMBDA = 1.0
"""Ridge parameter when solving for weights."""

TOLERANCE = 1e-4
"""Relative length of the residual below which matching pursuit stops."""

ITERATIONS = 300
"""Maximum number of k-means iterations, as in the released code; most runs converge before."""

Positions = NDArray[np.int64]
Matrix = NDArray[np.float64]


def tagcos(vectors: NDArray[np.floating], sample_ids: pl.Series, budget: int, clusters: int, seed: int) -> Positions:
    """Return the positions of the chosen samples, cluster by cluster.

    Args:
        vectors: gradient features [n, k].
        sample_ids: the id of each row.
        budget: number of samples wanted; all rows are taken if there are not more.
        clusters: number of k-means clusters.
        seed: seed of k-means.
    """
    by_id = np.argsort(sample_ids.to_numpy())
    ordered = vectors[by_id].astype(np.float64)
    found = k_means(ordered, clusters, seed, ITERATIONS)
    taken = from_clusters(ordered, found, min(budget, len(ordered)))
    return by_id[taken].astype(np.int64)


def from_clusters(rows: Matrix, found: Clusters, budget: int) -> Positions:
    """Return the chosen rows [n, k], cluster by cluster, given their clusters."""
    labels = np.unique(found.labels)
    members = [np.flatnonzero(found.labels == label) for label in labels]
    quotas = shares([len(own) for own in members], budget)
    chosen = [
        own[pursue(rows[own], found.centroids[label], quota)]
        for label, own, quota in zip(labels, members, quotas, strict=True)
    ]
    return np.concatenate([np.empty(0, dtype=np.int64), *chosen])


def shares(sizes: list[int], budget: int) -> list[int]:
    """Divide a budget by size: round down, then give the rest to the largest remainders, ties in order."""
    total = sum(sizes)
    parts = [divmod(budget * size, total) for size in sizes]
    order = sorted(range(len(sizes)), key=lambda place: -parts[place][1])
    quotas = [whole for whole, _ in parts]
    for place in order[: budget - sum(quotas)]:
        quotas[place] += 1
    return quotas


def pursue(rows: Matrix, centroid: NDArray[np.float64], quota: int) -> Positions:
    """Pick `quota` of a cluster's rows [n, k] by repeated matching pursuit of its centroid [k] with the rows left."""
    left = np.arange(len(rows))
    chosen: list[Positions] = []
    wanted = min(quota, len(rows))
    while wanted:
        own = rows[left]
        picked = matching_pursuit(own, centroid, wanted)
        if not len(picked):
            # Nothing correlates with a centroid of zero. The released code would not end; we take the first row.
            picked = np.array([0])
        chosen.append(left[picked])
        left = np.delete(left, picked)
        wanted -= len(picked)
    return np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int64)


def matching_pursuit(rows: Matrix, aim: NDArray[np.float64], most: int) -> Positions:
    """Non-negative orthogonal matching pursuit: find rows [n, k] whose weighted sum approximates an aim [k].

    Each iteration adds the row that correlates most with the residual, and solves for all weights again with a ridge
    (as coded, without one if it is the only row); the row with the most negative weight is dropped until there is none.
    It stops when the residual is small, when the best row is already picked or is itself dropped, or after `most`
    iterations.
    """
    scale = float(np.linalg.norm(aim))
    picked: list[int] = []
    residual = aim
    weights: NDArray[np.float64]
    for _ in range(most):
        if scale == 0.0 or float(np.linalg.norm(residual)) / scale < TOLERANCE:
            break
        agreement = rows @ residual
        best = int(np.argmax(agreement))
        if best in picked:
            break
        picked.append(best)
        if len(picked) == 1:
            square = float(rows[best] @ rows[best])
            if not square:
                return np.empty(0, dtype=np.int64)
            weights = np.array([agreement[best] / square], dtype=np.float64)
        else:
            weights = _weights(rows[picked], aim)
            while weights.min() < 0.0:
                picked.pop(worst := int(np.argmin(weights)))
                if worst == len(picked):
                    # The newest row: it would be picked and dropped again.
                    return np.array(picked, dtype=np.int64)
                weights = _weights(rows[picked], aim)
        residual = aim - weights @ rows[picked]
    return np.array(picked, dtype=np.int64)


def _weights(rows: Matrix, aim: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights of rows whose sum approximates an aim, with a ridge."""
    gram = rows @ rows.T + LAMBDA * np.eye(len(rows))
    return np.asarray(np.linalg.solve(gram, rows @ aim), dtype=np.float64)


class Tagcos(SelectorSection):
    """Select from clusters of gradients, in proportion to their size, by matching pursuit of its centroid
    (TAGCOS)."""

    kind: Literal["tagcos"] = "tagcos"
    clusters: int = Field(100, ge=1, description="K of k-means")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of k-means")


def _tagcos(selector: Tagcos, found: Candidates) -> Choice:
    features, places = features_of(selector.kind, found), np.flatnonzero(found.may)
    if not len(places):
        return Choice(places)
    ids = found.pool["sample_id"].gather(places)
    limit = len(places) if found.limit is None else found.limit
    return Choice(places[tagcos(features.vectors(ids), ids, limit, selector.clusters, selector.seed)])


SELECTORS = [
    Selector(
        Tagcos,
        _tagcos,
        vectors=True,
        signal="adam_feature_trajectories",
        needs="gradients along a run",
        apportions=True,
        version=2,
    )
]
