"""Facility location: choose samples so that every candidate is similar to one of them.

Greedy maximization of F(S) = sum over candidates i of max over j in S of max(0, cos(i, j)). The gain of a sample can
only fall as others are chosen, so an outdated gain is an upper bound, and only the samples with the largest bounds are
evaluated again (lazy greedy). Cosines are rounded to multiples of 2^-23. Sums of them are exact, so equal gains are
equal, ties are broken by sample_id, and the picks are those of the plain greedy loop over the same cosines.

Above `exact_up_to` candidates a sample covers only those candidates that have it among their `neighbours` nearest ones
(exact, by cosine), and never an N x N matrix is held.

Measured on 2 shared CPU cores with `python -m tests.benchmarks.recipes --rounds 3`: 10 % of 5,000 vectors of 384 take
1/49 of the CPU time of the plain numpy loop (1/59 to 1/36), which is extrapolated from its first 20 picks. 10 % of
100,000 take 173 s of CPU time by neighbours, and 1.53 GiB. Against all pairs, neighbours lose 0.59, 0.32, 0.05 and
0.01 % of F at budgets of 1, 5, 10 and 20 % of 10,000 vectors in 500 clusters. On MiniLM's embeddings of GSM8K's 7,473
questions they lose 0.44, 0.05, 0.03 and 0.01 %, and a random choice 7.9, 5.9, 4.5 and 3.6 %. Many equal vectors make
neighbours slow: each is compared with all of them.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Literal, Protocol

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
from curation_assets.methods.vectors import UNITS, directions, similarities

ROWS = 512
"""Rows per matrix product."""
BATCH = 64
"""Most samples that are evaluated at once."""
SOME = 4096
"""Number of similarities of a row from which the similarity of its last neighbour is estimated."""

Single = NDArray[np.float32]
Double = NDArray[np.float64]


class Coverage(Protocol):
    """The coverage of each candidate by the samples taken so far, in units of `similarities`."""

    def first(self) -> Double:
        """Return the gain of each sample when none is taken [N]."""

    def gains(self, samples: list[int]) -> list[float]:
        """Return the gain of samples now."""

    def take(self, sample: int) -> None:
        """Take a sample."""


class Dense:
    """Coverage by all similarities [N, N]: 4 N^2 bytes."""

    def __init__(self, vectors: NDArray[np.floating]) -> None:
        points = directions(vectors)
        self._similarity = np.empty((len(points), len(points)), dtype=np.float32)
        for start in range(0, len(points), ROWS):
            rows = slice(start, start + ROWS)
            block = similarities(points[rows], points[start:])
            np.maximum(block, 0.0, out=block)
            self._similarity[rows, start:] = block
            self._similarity[start:, rows] = block.T
        self._covered = np.zeros(len(points), dtype=np.float32)

    def first(self) -> Double:
        """Return the gain of each sample when none is taken [N]."""
        total: Double = self._similarity.sum(axis=1, dtype=np.float64)
        return total

    def gains(self, samples: list[int]) -> list[float]:
        """Return the gain of samples now."""
        more = self._similarity[samples]
        more -= self._covered
        np.maximum(more, 0.0, out=more)
        total: list[float] = more.sum(axis=1, dtype=np.float64).tolist()
        return total

    def take(self, sample: int) -> None:
        """Take a sample."""
        np.maximum(self._covered, self._similarity[sample], out=self._covered)


class Sparse:
    """Coverage by the nearest neighbours of each candidate."""

    def __init__(self, vectors: NDArray[np.floating], neighbours: int) -> None:
        near, similarity = nearest(vectors, neighbours)
        count = len(near)
        covers = similarity.reshape(-1) > 0.0
        by = near.reshape(-1)[covers]
        # For each sample, the candidates that it covers.
        order = np.argsort(by, kind="stable")
        self._rows = np.repeat(np.arange(count, dtype=np.int32), near.shape[1])[covers][order]
        self._similarity = similarity.reshape(-1)[covers][order]
        self._ends = np.concatenate([[0], np.cumsum(np.bincount(by, minlength=count))]).tolist()
        self._first: Double = np.bincount(by, similarity.reshape(-1)[covers], count).astype(np.float64, copy=False)
        self._covered = np.zeros(count, dtype=np.float32)

    def first(self) -> Double:
        """Return the gain of each sample when none is taken [N]."""
        return self._first

    def gains(self, samples: list[int]) -> list[float]:
        """Return the gain of samples now."""
        return [self._gain(sample) for sample in samples]

    def take(self, sample: int) -> None:
        """Take a sample."""
        own = slice(self._ends[sample], self._ends[sample + 1])
        rows = self._rows[own]
        self._covered[rows] = np.maximum(self._covered[rows], self._similarity[own])

    def _gain(self, sample: int) -> float:
        own = slice(self._ends[sample], self._ends[sample + 1])
        more = self._similarity[own] - self._covered[self._rows[own]]
        return float(np.maximum(more, 0.0).sum(dtype=np.float64))


def facility_location(vectors: NDArray[np.floating], count: int, exact_up_to: int, neighbours: int) -> Positions:
    """Return the order in which samples are chosen; equal gains are ordered by position.

    Args:
        vectors: embeddings [N, d], finite, of any length; the cosine with a zero vector is 0.
        count: number of samples to choose, or all.
        exact_up_to: compare all pairs of at most this many samples.
        neighbours: with more samples, compare each with this many nearest ones, itself included.
    """
    if not len(vectors):
        return np.empty(0, dtype=np.int64)
    return greedy(Dense(vectors) if len(vectors) <= exact_up_to else Sparse(vectors, neighbours), count)


def greedy(coverage: Coverage, count: int) -> Positions:
    """Return the order in which the greedy algorithm takes samples."""
    # Sorted by bound, then by position. A bound is exact if no sample was taken since it was computed.
    bounds = [(-gain, sample) for sample, gain in enumerate(coverage.first().tolist())]
    exact = [0] * len(bounds)
    heapify(bounds)
    order: list[int] = []
    while bounds and len(order) < count:
        size = 1
        while bounds[0][0] and exact[bounds[0][1]] != len(order):
            stale: list[int] = []
            while bounds and len(stale) < size and exact[bounds[0][1]] != len(order):
                stale.append(heappop(bounds)[1])
            for sample, gain in zip(stale, coverage.gains(stale), strict=True):
                exact[sample] = len(order)
                heappush(bounds, (-gain, sample))
            size = min(2 * size, BATCH)
        sample = heappop(bounds)[1]
        coverage.take(sample)
        order.append(sample)
    return np.array(order, dtype=np.int64)


def nearest(vectors: NDArray[np.floating], neighbours: int) -> tuple[NDArray[np.int32], Single]:
    """Return the nearest neighbours of each vector by cosine, itself included, nearest first, ties by position.

    Products in fp32 find everything that can be among the nearest, in view of their rounding errors; the cosines of
    these are exact.

    Args:
        vectors: embeddings [N, d].
        neighbours: number of neighbours k, or all.

    Returns:
        positions [N, k], and cosines in units of `similarities` [N, k], at least 0.
    """
    points = directions(vectors)
    single = points.astype(np.float32)
    count = len(points)
    wanted = min(neighbours, count)
    # A sum of d products of unit vectors in fp32, in any order, is wrong by at most about d 2^-24. Vectors and cosines
    # are rounded, too.
    error = (points.shape[1] + 8) * 2.0**-24
    positions = np.zeros((count, wanted), dtype=np.int32)
    found = np.zeros((count, wanted), dtype=np.float32)
    other = np.flatnonzero(single.any(axis=1))
    if not len(other):
        return positions, found
    wanted = min(wanted, len(other))
    # The cosine with a zero vector is 0, so only the others can be neighbours.
    right = single[other].T if len(other) < count else single.T
    for start in range(0, len(other), ROWS):
        rows = other[start : start + ROWS]
        product = single[rows] @ right
        for row, approximate, least in zip(rows, product, _least(product, wanted), strict=True):
            near = np.flatnonzero(approximate >= least)
            if len(near) < wanted:
                near = np.arange(len(other))
            values = approximate[near]
            # The k-th cosine is at least the computed k-th - error, and what reaches it is computed as that - error.
            bound = float(np.partition(values, len(near) - wanted)[len(near) - wanted]) - 2.0 * error
            near = np.flatnonzero(approximate >= bound) if bound < least else near[values >= bound]
            places = other[near]
            similarity = similarities(points[row : row + 1], points[places])[0]
            best = np.lexsort((places, -similarity))[:wanted]
            positions[row, :wanted], found[row, :wanted] = places[best], similarity[best]
    np.maximum(found, 0.0, out=found)
    return positions, found


def _least(product: Single, wanted: int) -> Single:
    """Return, for each row [n, M], a number that somewhat more than `wanted` of its entries reach, as a rule."""
    count = product.shape[1]
    some = product[:, :: max(1, count // SOME)]
    place = some.shape[1] - 1 - min(some.shape[1] - 1, 2 * wanted * some.shape[1] // count + 8)
    least: Single = np.partition(some, place, axis=1)[:, place]
    return least


def coverage_of(vectors: NDArray[np.floating], chosen: Positions) -> float:
    """Return F of chosen samples over all vectors [N, d]: between 0 and N."""
    points, total = directions(vectors), 0.0
    held = points[chosen]
    if not len(held):
        return 0.0
    for start in range(0, len(points), ROWS):
        best = similarities(points[start : start + ROWS], held).max(axis=1)
        total += float(np.maximum(best, 0.0).sum(dtype=np.float64))
    return total / UNITS


class FacilityLocation(VectorSelector):
    """Select samples so that every candidate is similar to one of them: facility location by cosine, greedy."""

    kind: Literal["facility_location"] = "facility_location"
    exact_up_to: int = Field(
        16_384,
        ge=0,
        description="compare all pairs of at most this many candidates N, in 4 N^2 bytes of memory; with more of them, "
        "compare each with its nearest neighbours",
    )
    neighbours: int = Field(
        128, ge=1, description="nearest neighbours by cosine of each candidate, itself included, above exact_up_to"
    )


def _facility_location(selector: FacilityLocation, found: Candidates) -> Choice:
    features, places = features_of(selector.kind, found), np.flatnonzero(found.may)
    if not len(places):
        return Choice(places)
    ids = found.pool["sample_id"].gather(places)
    # Ties are broken by position.
    places = places[np.argsort(tie_rank(ids))]
    limit = len(places) if found.limit is None else found.limit
    vectors = features.vectors(found.pool["sample_id"].gather(places))
    return Choice(places[facility_location(vectors, limit, selector.exact_up_to, selector.neighbours)])


SELECTORS = [Selector(FacilityLocation, _facility_location, vectors=True, needs="embeddings")]
