"""K-center greedy: the sample farthest from all that are chosen, again and again (core-sets, arXiv 1708.00489).

Farthest first with a running minimum of squared distances, O(N k d) at most and never an N x N matrix. A minimum
only ever falls, so one that was not brought up to date is an upper bound. Picks are made among the few samples
with the largest bounds, kept exact, for as long as none of the others could be farther; then the others are
brought up to date with all new centres in one matrix product.
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
    SelectorSection,
    ascending,
    features_of,
    tie_rank,
)

FRONT = 512
"""Samples that picks are made among between two updates of the others."""
ROWS = 16_384
"""Rows of an update that are worked on at once."""
NOISE = 1e-6
"""Squared distances below this share of the largest squared norm are zero: rounding of single precision."""

Positions = NDArray[np.int64]
Single = NDArray[np.float32]


def k_center(vectors: NDArray[np.floating], count: int, first: int, tie_rank: Positions) -> Positions:
    """The order in which samples are chosen.

    Args:
        vectors: embeddings [N, d], finite.
        count: so many are chosen, or all.
        first: position of the first.
        tie_rank: which of two equally far samples comes first [N].
    """
    samples = len(vectors)
    count = min(count, samples)
    if count == 0:
        return np.empty(0, dtype=np.int64)
    # About the origin, the squares that distances are the differences of are smallest.
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
    """Bring all bounds up to date with new centres; chosen samples stay below zero."""
    chosen, own = points[centres].T, squared[centres]
    for start in range(0, len(points), ROWS):
        rows = slice(start, start + ROWS)
        distance = squared[rows, None] - 2.0 * (points[rows] @ chosen)
        distance += own
        _lower(bound[rows], distance.min(axis=1), noise)


def _pick(
    points: Single, squared: Single, bound: Single, wanted: int, tie_rank: Positions, noise: np.float32
) -> list[int]:
    """Choose samples for as long as the farthest is certain; bounds hold all centres so far on entry."""
    size = min(FRONT, len(points))
    front = np.argpartition(-bound, size - 1)[:size]
    # In their order of ties, so that the first of equal maxima is the one.
    front = front[np.argsort(tie_rank[front])]
    outside = np.ones(len(points), dtype=np.bool_)
    outside[front] = False
    others = float(bound[outside].max(initial=-1.0))
    near, near_squared, distance = points[front], squared[front], bound[front]
    picked: list[int] = []
    while len(picked) < wanted:
        best = int(distance.argmax())
        # Equally far ones outside may come first by id: then the others are looked at again.
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
    """Take the smaller of bound and distance; what is chosen stays below zero, and rounding is no distance."""
    distance[distance < noise] = 0.0
    np.minimum(bound, distance, out=bound)


class KCenter(SelectorSection):
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
