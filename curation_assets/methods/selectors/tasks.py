"""Selector `tasks`: the best samples over several validation sets, compared within the pool.

Scores for different sets have different scales. Votes (ICONS, arXiv 2501.00654) count for how many sets a sample is
among the best; the normalised mean averages z-scores.
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
    SelectorSection,
    features_of,
    tie_rank,
)

Aggregate = Literal["max", "mean", "normalised_mean", "vote"]
"""Aggregation of scores over validation sets. The last two compare a sample with the pool, so they are left to this
selector, and the score itself is the mean."""

AGGREGATION = (
    "aggregation over the sets; normalised_mean and vote (ICONS) are computed over the pool by selector tasks, which "
    "is then the default, and the score itself is the mean"
)


def normalised_mean(influence: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over sets of the z-scores over the pool [n] of scores [n, K]; a constant set counts as zero."""
    deviation = influence.std(axis=0)
    scaled = (influence - influence.mean(axis=0)) / np.where(deviation > 0.0, deviation, 1.0)
    mean: NDArray[np.float64] = scaled.mean(axis=1)
    return mean


def votes(influence: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return the number of sets for which each sample is among the `count` best [n]; equally good ones all are."""
    if not count:
        return np.zeros(len(influence), dtype=np.int64)
    place = len(influence) - min(count, len(influence))
    limits = np.partition(influence, place, axis=0)[place]
    counted: NDArray[np.int64] = (influence >= limits).sum(axis=1)
    return counted


def by_tasks(influence: NDArray[np.float64], count: int, tie_rank: Positions, aggregate: str) -> Positions:
    """Return the order of choice: by votes, then by normalised mean, then by id; or without votes."""
    mean = normalised_mean(influence)
    keys = [tie_rank, -mean]
    if aggregate == "vote":
        keys.append(-votes(influence, count))
    order: Positions = np.lexsort(keys).astype(np.int64)
    return order


class Tasks(SelectorSection):
    """Select the best samples over several validation sets, by votes or by the normalised mean of their scores."""

    kind: Literal["tasks"] = "tasks"
    aggregate: Literal["vote", "normalised_mean"] = Field(
        "vote",
        description="vote: number of sets for which the sample is within the budget's share of the best (ICONS), ties "
        "by normalised mean; normalised_mean: mean of z-scores over the pool",
    )


def _tasks(selector: Tasks, found: Candidates) -> Choice:
    features, places = features_of(selector.kind, found), np.flatnonzero(found.may)
    assert features.influence is not None, "tasks without validation sets"
    if not len(places):
        return Choice(places)
    ids = found.pool["sample_id"].gather(places)
    limit = len(places) if found.limit is None else min(found.limit, len(places))
    return Choice(places[by_tasks(features.influence(ids), limit, tie_rank(ids), selector.aggregate)])


def selector_for(aggregate: str) -> Tasks | None:
    """Return the selector for an aggregation over sets that compares samples with the pool, else None."""
    if aggregate == "vote":
        return Tasks(aggregate="vote")
    return Tasks(aggregate="normalised_mean") if aggregate == "normalised_mean" else None


SELECTORS = [
    Selector(Tasks, _tasks, vectors=True, validation=True, needs="validation samples", apportions=True),
]
