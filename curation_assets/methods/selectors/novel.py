"""Novel: the best samples that are not too similar to a better one (DEITA's filter, arXiv 2312.15685).

Samples are visited in order of score. A sample is taken unless its cosine with one of those taken exceeds `tau`. The
paper calls the threshold one of distance; its released code (hkust-nlp/deita, `selection/filter/base.py`) compares
cosine similarities, as we do. Samples are compared in blocks: with all those taken before the block in one matrix
product, then with each other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from curation_assets.methods.selectors.candidates import (
    Candidates,
    Choice,
    Mask,
    Positions,
    Selector,
    VectorSelector,
    features_of,
)
from curation_assets.methods.vectors import UNITS, directions, similarities

BLOCK = 512
"""Samples that are compared at once."""
HELD = 8192
"""Samples taken that they are compared with at once."""


class Novelty(NamedTuple):
    """The positions of the samples taken, in order, and the number that were too similar to one of them."""

    order: Positions
    too_near: int


def novel(vectors: NDArray[np.floating], tau: float, count: int) -> Novelty:
    """Take samples in the order of rows, without those that are too similar to one taken before.

    Args:
        vectors: embeddings [N, d], best first, finite, of any length; the cosine with a zero vector is 0.
        tau: the largest cosine allowed between two samples taken.
        count: number of samples to take; it ends there, so that only those passed over until then are counted.
    """
    # A whole number, as the similarities are: comparisons in fp32 are exact.
    most, visited, taken = np.floor(tau * UNITS), 0, 0
    held = np.empty((min(count, len(vectors)), vectors.shape[-1]), dtype=np.float64)
    order: list[Positions] = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(vectors), BLOCK):
        if taken == len(held):
            break
        block = directions(vectors[start : start + BLOCK])
        free = np.ones(len(block), dtype=np.bool_)
        for first in range(0, taken, HELD):
            left = np.flatnonzero(free)
            others = held[first : min(first + HELD, taken)]
            free[left] = (similarities(block[left], others) <= most).all(axis=1)
        left = np.flatnonzero(free)
        near = similarities(block[left], block[left]) > most
        kept = left[_first(near)][: len(held) - taken]
        held[taken : taken + len(kept)] = block[kept]
        taken += len(kept)
        visited = start + (int(kept[-1]) + 1 if taken == len(held) else len(block))
        order.append(start + kept)
    return Novelty(np.concatenate(order), visited - taken)


def _first(near: NDArray[np.bool_]) -> Mask:
    """Return which samples are near no earlier one that is itself returned, given which are near each other [n, n]."""
    kept = np.ones(len(near), dtype=np.bool_)
    later = np.triu(near, 1)
    for row in np.flatnonzero(later.any(axis=1)):
        if kept[row]:
            kept[later[row]] = False
    return kept


class Novel(VectorSelector):
    """Select the best samples by score that are not too similar to a better one already selected (DEITA)."""

    kind: Literal["novel"] = "novel"
    tau: float = Field(0.9, ge=-1, le=1, description="largest cosine allowed between two selected samples")


def _novel(selector: Novel, found: Candidates) -> Choice:
    features = features_of(selector.kind, found)
    # The order of all candidates: those passed over are not known yet.
    places = replace(found, limit=None).ranked(found.highest_first)
    if not len(places):
        return Choice(places)
    limit = len(places) if found.limit is None else found.limit
    taken = novel(features.vectors(found.pool["sample_id"].gather(places)), selector.tau, limit)
    return Choice(places[taken.order], {"too_near": taken.too_near} if taken.too_near else {})


SELECTORS = [Selector(Novel, _novel, vectors=True, needs="embeddings")]
