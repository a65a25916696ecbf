"""S2L's selection (docs/methods.md): clusters of loss trajectories, per source, smallest first, equal shares."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from curation_assets.methods.random_draws import uniform
from curation_assets.methods.selectors.candidates import Candidates, Choice, Selector, SelectorSection, features_of
from curation_assets.methods.selectors.clusters import Labels, k_means

TINY_CLUSTER = 2
"""Clusters of at most this many points have no share; they are drawn from if others do not fill the budget."""

Positions = NDArray[np.int64]


def s2l(
    vectors: NDArray[np.floating],
    sample_ids: pl.Series,
    sources: NDArray[np.int64],
    budget: int,
    clusters: int,
    seed: int,
) -> Positions:
    """Return the positions of the chosen samples, in the order in which they are taken.

    Args:
        vectors: raw losses [n, T] at the checkpoints of a reference run, in step order.
        sample_ids: the id of each row.
        sources: number of each row's source [n].
        budget: number of samples wanted; all rows are taken if there are not more.
        clusters: K, clusters per source.
        seed: seed of k-means and of the draws within clusters.
    """
    names = sample_ids.to_numpy()
    drawn = uniform(sample_ids, seed).to_numpy()
    by_id = np.argsort(names)
    groups = [by_id[sources[by_id] == source] for source in np.unique(sources)]
    # Sources of equal size are ordered by their first sample.
    groups.sort(key=lambda own: (len(own), str(names[own[0]])))
    chosen: list[Positions] = []
    left = min(budget, len(names))
    for place, own in enumerate(groups):
        quota = left // (len(groups) - place)
        taken = own if len(own) <= quota else own[_of_source(vectors[own], drawn[own], quota, clusters, seed)]
        chosen.append(taken)
        left -= len(taken)
    return np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int64)


def _of_source(
    vectors: NDArray[np.floating], drawn: NDArray[np.float64], quota: int, clusters: int, seed: int
) -> Positions:
    """Return `quota` rows of one source."""
    return from_clusters(k_means(vectors, clusters, seed).labels, drawn, quota)


def from_clusters(labels: Labels, drawn: NDArray[np.float64], quota: int) -> Positions:
    """Return `quota` rows of one source: an equal number per cluster, smallest first; tiny clusters come last.

    Args:
        labels: the cluster of each row [n], rows ordered by sample_id.
        drawn: a seeded random number per row [n].
        quota: number of rows wanted; at most n.
    """
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    sharing = sorted((own for own in members if len(own) > TINY_CLUSTER), key=lambda own: (len(own), int(own[0])))
    taken: list[Positions] = [np.empty(0, dtype=np.int64)]
    left = quota
    for place, own in enumerate(sharing):
        taken.append(_draw(own, drawn, left // (len(sharing) - place)))
        left -= len(taken[-1])
    # All others have been taken completely if anything is left, because the last cluster may take all of it.
    tiny = np.concatenate([np.empty(0, dtype=np.int64), *(own for own in members if len(own) <= TINY_CLUSTER)])
    taken.append(_draw(np.sort(tiny), drawn, left))
    return np.concatenate(taken)


def _draw(rows: Positions, drawn: NDArray[np.float64], count: int) -> Positions:
    """Draw rows without replacement: those with the lowest random numbers."""
    return rows[np.argsort(drawn[rows], kind="stable")[:count]]


class S2L(SelectorSection):
    """Select equally from clusters of loss trajectories, the smallest cluster first, source by source (S2L)."""

    kind: Literal["s2l"] = "s2l"
    clusters: int = Field(100, ge=1, description="K of k-means, per source")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of k-means and of the draws within clusters")


def _s2l(selector: S2L, found: Candidates) -> Choice:
    features, places = features_of(selector.kind, found), np.flatnonzero(found.may)
    if not len(places):
        return Choice(places)
    own = found.pool[places]
    sources = own["source"].fill_null("").rank("dense").cast(pl.Int64).to_numpy()
    limit = len(places) if found.limit is None else found.limit
    vectors = features.vectors(own["sample_id"])
    return Choice(places[s2l(vectors, own["sample_id"], sources, limit, selector.clusters, selector.seed)])


SELECTORS = [
    Selector(S2L, _s2l, vectors=True, signal="loss_trajectories", needs="loss trajectories", apportions=True, version=2)
]
