"""TAGCOS's selection: clusters of gradient features; each contributes the few that sum to its mean.

See docs/methods.md, "LESS, TAGCOS and GraNd".
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from curation_assets.methods.selectors.candidates import Candidates, Choice, Selector, SelectorSection, features_of
from curation_assets.methods.selectors.clusters import k_means

LAMBDA = 1.0
"""Ridge parameter when solving for weights."""

TOLERANCE = 1e-4
"""Relative length of the residual below which matching pursuit stops."""

PICKS_DIVISOR = 20
"""A twentieth of a cluster is picked at a time, and at least one sample."""

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
    labels = k_means(ordered, clusters, seed)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    quotas = shares([len(own) for own in members], min(budget, len(ordered)))
    taken = [own[pursue(ordered[own], quota)] for own, quota in zip(members, quotas, strict=True)]
    return by_id[np.concatenate(taken)].astype(np.int64) if taken else np.empty(0, dtype=np.int64)


def shares(sizes: list[int], budget: int) -> list[int]:
    """Divide a budget by size: round down, then give the rest to the largest remainders, ties in order."""
    total = sum(sizes)
    parts = [divmod(budget * size, total) for size in sizes]
    order = sorted(range(len(sizes)), key=lambda place: -parts[place][1])
    quotas = [whole for whole, _ in parts]
    for place in order[: budget - sum(quotas)]:
        quotas[place] += 1
    return quotas


def pursue(rows: Matrix, quota: int) -> Positions:
    """Pick `quota` of a cluster's rows [n, k] by repeated matching pursuit of the mean of the remaining rows."""
    left = np.arange(len(rows))
    chosen: list[Positions] = []
    wanted = min(quota, len(rows))
    while wanted:
        most = min(wanted, max(1, len(rows) // PICKS_DIVISOR))
        own = rows[left]
        picked = matching_pursuit(own, own.mean(axis=0), most)
        if not len(picked):
            # No row correlates with a mean of zero: take the first one.
            picked = np.array([0])
        chosen.append(left[picked])
        left = np.delete(left, picked)
        wanted -= len(picked)
    return np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int64)


def matching_pursuit(rows: Matrix, aim: NDArray[np.float64], most: int) -> Positions:
    """Non-negative orthogonal matching pursuit: find rows [n, k] whose weighted sum approximates an aim [k].

    Each iteration adds the row that correlates most with the residual, and solves for all weights again with a ridge
    (as coded, the first one without); rows with a negative weight are dropped. It stops when the residual is small,
    when the best row is already picked, or after `most` picks.
    """
    scale = float(np.linalg.norm(aim))
    picked: list[int] = []
    residual = aim
    for _ in range(most):
        if scale == 0.0 or float(np.linalg.norm(residual)) <= TOLERANCE * scale:
            break
        best = int(np.argmax(rows @ residual))
        if best in picked:
            break
        picked.append(best)
        picked, weights = _solve(rows, aim, picked)
        residual = aim - weights @ rows[picked]
    return np.array(picked, dtype=np.int64)


def _solve(rows: Matrix, aim: NDArray[np.float64], picked: list[int]) -> tuple[list[int], NDArray[np.float64]]:
    """Return the non-negative weights of the picked rows, and the rows that remain."""
    if len(picked) == 1:
        row = rows[picked[0]]
        square = float(row @ row)
        return picked, np.array([float(row @ aim) / square if square else 0.0])
    while True:
        own = rows[picked]
        gram = own @ own.T + LAMBDA * np.eye(len(own))
        weights = np.asarray(np.linalg.solve(gram, own @ aim), dtype=np.float64)
        if len(picked) == 1 or weights.min() >= 0.0:
            return picked, weights
        picked = [row for place, row in enumerate(picked) if place != int(np.argmin(weights))]


class Tagcos(SelectorSection):
    """Select from clusters of gradients, in proportion to their size, by matching pursuit of the cluster mean
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
    )
]
