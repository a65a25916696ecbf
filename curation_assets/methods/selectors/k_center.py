"""K-center greedy: repeatedly choose the sample farthest from all chosen ones (core-sets, arXiv 1708.00489).

Farthest-first with a running minimum of squared distances, at most O(N k d), and never an N x N matrix. A minimum can
only fall, so an outdated one is an upper bound. Samples are picked from the few with the largest bounds, which are kept
exact, as long as none of the others could be farther; then the others are updated with all new centres in one matrix
product.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from curation_assets.methods.random_draws import uniform
from curation_assets.methods.selectors.candidates import (
    Candidates,
    Choice,
    Selector,
    VectorSelector,
    ascending,
    features_of,
    tie_rank,
)

FRONT = 512
"""Number of samples to pick from between two updates of the others."""
ROWS = 16_384
"""Rows per block of an update."""
NOISE = 1e-6
"""Squared distances below this fraction of the largest squared norm are rounding errors, and set to zero."""

Positions = NDArray[np.int64]
Single = NDArray[np.float32]


def k_center(vectors: NDArray[np.floating], count: int, first: int, tie_rank: Positions) -> Positions:
    """Return the order in which samples are chosen.

    Args:
        vectors: embeddings [N, d], finite.
        count: number of samples to choose, or all.
        first: position of the first sample.
        tie_rank: order among equally distant samples [N].
    """
    samples = len(vectors)
    count = min(count, samples)
    if count == 0:
        return np.empty(0, dtype=np.int64)
    # Distances are differences of squares; centring keeps the squares small.
    points = vectors.astype(np.float32)
    points -= points.mean(axis=0, dtype=np.float64).astype(np.float32)
    squared = np.einsum("nd,nd->n", points, points)
    noise = np.float32(NOISE * float(squared.max(initial=0.0)))
    bound = np.full(samples, np.inf, dtype=np.float32)
    bound[first] = -1.0  # chosen
    order, fresh = [first], [first]
    while len(order) < count:
        _update(points, squared, bound, fresh, noise)
        fresh = _pick(points, squared, bound, count - len(order), tie_rank, noise)
        order += fresh
    return np.array(order, dtype=np.int64)


def _update(points: Single, squared: Single, bound: Single, centres: list[int], noise: np.float32) -> None:
    """Update all bounds with new centres; chosen samples stay below zero."""
    chosen, own = points[centres].T, squared[centres]
    for start in range(0, len(points), ROWS):
        rows = slice(start, start + ROWS)
        distance = squared[rows, None] - 2.0 * (points[rows] @ chosen)
        distance += own
        _lower(bound[rows], distance.min(axis=1), noise)


def _pick(
    points: Single, squared: Single, bound: Single, wanted: int, tie_rank: Positions, noise: np.float32
) -> list[int]:
    """Choose samples as long as the farthest is certain; on entry, bounds cover all centres so far."""
    size = min(FRONT, len(points))
    front = np.argpartition(-bound, size - 1)[:size]
    # Sorted by tie rank, so that argmax finds the first of equal maxima.
    front = front[np.argsort(tie_rank[front])]
    outside = np.ones(len(points), dtype=np.bool_)
    outside[front] = False
    others = float(bound[outside].max(initial=-1.0))
    near, near_squared, distance = points[front], squared[front], bound[front]
    picked: list[int] = []
    while len(picked) < wanted:
        best = int(distance.argmax())
        # An equally distant sample outside may come first by id: then update the others.
        certain = distance[best] > others or (not picked and distance[best] >= others)
        if not certain:
            break
        if not picked and distance[best] == others:
            ties = np.flatnonzero(bound == distance[best])
            place = int(ties[tie_rank[ties].argmin()])
        else:
            place = int(front[best])
        picked.append(place)
        bound[place] = -1.0
        distance[front == place] = -1.0
        to_new = near_squared + squared[place] - 2.0 * (near @ points[place])
        _lower(distance, to_new, noise)
    return picked


def _lower(bound: Single, distance: Single, noise: np.float32) -> None:
    """Lower bounds to the distance; chosen samples stay below zero, and rounding errors become zero."""
    distance[distance < noise] = 0.0
    np.minimum(bound, distance, out=bound)


class KCenter(VectorSelector):
    """Select the sample farthest from all selected ones, repeatedly, by embeddings."""

    kind: Literal["k_center"] = "k_center"
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the first sample")


def _k_center(selector: KCenter, found: Candidates) -> Choice:
    features, places = features_of(selector.kind, found), np.flatnonzero(found.may)
    if not len(places):
        return Choice(places)
    ids = found.pool["sample_id"].gather(places)
    first = int(ascending(uniform(ids, selector.seed).to_numpy(), ids, np.arange(len(ids)), 1)[0])
    limit = len(places) if found.limit is None else found.limit
    return Choice(places[k_center(features.vectors(ids), limit, first, tie_rank(ids))])


SELECTORS = [Selector(KCenter, _k_center, vectors=True, needs="embeddings")]
