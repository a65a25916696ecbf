"""S2L's selection (docs/methods.md): clusters of loss trajectories, per source, smallest first, equal shares."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from curation_assets.methods.random_draws import uniform
from curation_assets.methods.selectors.candidates import Candidates, Choice, Selector, SelectorSection, features_of
from curation_assets.methods.selectors.clusters import k_means

TINY_CLUSTER = 2
"""Clusters of at most this many points come last."""

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
    labels = k_means(vectors, clusters, seed)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    members.sort(key=lambda own: (len(own) <= TINY_CLUSTER, len(own), int(own[0])))
    taken: list[Positions] = []
    left = quota
    for place, own in enumerate(members):
        share = left // (len(members) - place)
        # Draw without replacement: the lowest per-sample random numbers.
        taken.append(own[np.argsort(drawn[own], kind="stable")[:share]])
        left -= len(taken[-1])
    chosen = np.concatenate(taken)
    if left:
        # Fill the remainder that tiny clusters at the end could not.
        others = np.setdiff1d(np.arange(len(labels)), chosen)
        chosen = np.concatenate([chosen, others[np.argsort(drawn[others], kind="stable")[:left]]])
    return chosen.astype(np.int64)


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


SELECTORS = [Selector(S2L, _s2l, vectors=True, signal="loss_trajectories", needs="loss trajectories", apportions=True)]
