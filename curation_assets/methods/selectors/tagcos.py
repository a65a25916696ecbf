"""TAGCOS's choice (methods.md, 5): clusters of gradient features, and of each the few that add up to its mean."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from curation_assets.methods.selectors.candidates import Candidates, Choice, Selector, SelectorSection, features_of
from curation_assets.methods.selectors.clusters import k_means

LAMBDA = 1.0
"""Of the ridge that weights are solved with."""

TOLERANCE = 1e-4
"""Of the residual's length over the mean's: what is left is no longer looked at."""

PICKS_DIVISOR = 20
"""Of a cluster a twentieth is picked at a time, and one sample at least."""

Positions = NDArray[np.int64]
Matrix = NDArray[np.float64]


def tagcos(vectors: NDArray[np.floating], sample_ids: pl.Series, budget: int, clusters: int, seed: int) -> Positions:
    """Positions of the chosen samples, cluster by cluster.

    Args:
        vectors: gradient features [n, k].
        sample_ids: of each row.
        budget: samples wanted; all rows are taken where there are not more.
        clusters: of k-means.
        seed: of k-means.
    """
    by_id = np.argsort(sample_ids.to_numpy())
    ordered = vectors[by_id].astype(np.float64)
    labels = k_means(ordered, clusters, seed)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    quotas = shares([len(own) for own in members], min(budget, len(ordered)))
    taken = [own[pursue(ordered[own], quota)] for own, quota in zip(members, quotas, strict=True)]
    return by_id[np.concatenate(taken)].astype(np.int64) if taken else np.empty(0, dtype=np.int64)


def shares(sizes: list[int], budget: int) -> list[int]:
    """A budget shared out by size: rounded down, and what is left goes to the largest remainders, then to the first."""
    total = sum(sizes)
    parts = [divmod(budget * size, total) for size in sizes]
    order = sorted(range(len(sizes)), key=lambda place: -parts[place][1])
    quotas = [whole for whole, _ in parts]
    for place in order[: budget - sum(quotas)]:
        quotas[place] += 1
    return quotas


def pursue(rows: Matrix, quota: int) -> Positions:
    """So many of a cluster's rows [n, k], by matching pursuit of their mean, and again of those that are left."""
    left = np.arange(len(rows))
    chosen: list[Positions] = []
    wanted = min(quota, len(rows))
    while wanted:
        most = min(wanted, max(1, len(rows) // PICKS_DIVISOR))
        own = rows[left]
        picked = matching_pursuit(own, own.mean(axis=0), most)
        if not len(picked):
            # Nothing points to a mean of zero: the row that comes first.
            picked = np.array([0])
        chosen.append(left[picked])
        left = np.delete(left, picked)
        wanted -= len(picked)
    return np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int64)


def matching_pursuit(rows: Matrix, aim: NDArray[np.float64], most: int) -> Positions:
    """Non-negative orthogonal matching pursuit: rows [n, k] whose weighted sum comes close to an aim [k].

    Each time the row that the residual agrees most with is added, and all weights are solved for again with a ridge
    (the first, as coded, without one); a row whose weight is negative is let go. It ends at a residual that is small,
    at a row that it has already, or after so many picks.
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
    """Weights of the picked rows, none negative, and which of them are left."""
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
