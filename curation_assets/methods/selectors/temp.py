"""TEMP's selection (arXiv 2606.26797): difficulty filter, budget per source, diversity, brittleness.

The letters are those of docs/methods.md, "TEMP": A (difficulty filter), C (budget per source), D (diversity and
brittleness).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from curation_assets.methods.random_draws import uniform
from curation_assets.methods.selectors.candidates import Candidates, Choice, Selector, SelectorSection, features_of
from curation_assets.methods.selectors.clusters import Labels, k_means, two_means

SAMPLES_A_CLUSTER = 4
"""k-means makes max(1, quota // 4) clusters per source, of which each gives about four samples."""

Positions = NDArray[np.int64]


STEPS = 8
"""Number of directional checkpoints."""


@dataclass(frozen=True)
class Path:
    """Early losses of n samples at the directional checkpoints, in nats.

    Attributes:
        early: l_100 at each of them [n, 8].
        curve: l_1000 at each of them [n, 8].
    """

    early: NDArray[np.float64]
    curve: NDArray[np.float64]


@dataclass(frozen=True)
class Losses:
    """Early losses of n samples: l_100 at the randomly perturbed checkpoint [n], and the losses along the path."""

    random: NDArray[np.float64]
    path: Path | None


def losses_of(vectors: NDArray[np.floating]) -> Losses:
    """Split rows into losses: [n, 1] is l_100 at the random checkpoint; [n, 17] adds l_100 and l_1000 on the path."""
    rows = vectors.astype(np.float64)
    if rows.shape[1] == 1:
        return Losses(rows[:, 0], None)
    assert rows.shape[1] == 1 + 2 * STEPS, rows.shape
    return Losses(rows[:, 0], Path(rows[:, 1 : 1 + STEPS], rows[:, 1 + STEPS :]))


def temp(
    random: NDArray[np.float64],
    path: Path,
    sample_ids: pl.Series,
    domains: NDArray[np.int64],
    sources: NDArray[np.int64],
    budget: int,
    seed: int,
) -> Choice:
    """Choose samples, source by source.

    Args:
        random: l_100 of each row at the randomly perturbed checkpoint [n].
        path: losses of each row along the path.
        sample_ids: the id of each row.
        domains: number of each row's domain [n].
        sources: number of each row's source [n].
        budget: number of samples wanted; fewer are returned if fewer survive the filter.
        seed: seed of k-means and of the draws among singletons.
    """
    by_id = np.argsort(sample_ids.to_numpy())
    survivors = by_id[difficult(random[by_id], sources[by_id], budget)]
    if not len(survivors):
        return Choice(survivors)
    pairs = domains[survivors] * (int(sources.max(initial=0)) + 1) + sources[survivors]
    drawn = uniform(sample_ids, seed).to_numpy()
    chosen = [np.empty(0, dtype=np.int64)]
    for pair, quota in _quotas(path, survivors, domains, pairs, budget).items():
        own = survivors[pairs == pair]
        chosen.append(own[diverse(path.curve[own], drawn[own], quota, seed)])
    highest = int(path.early[survivors].mean(axis=0).argmax()) + 1
    falls = f"the mean early loss is highest at directional checkpoint {highest} of {STEPS}, not at the last one"
    return Choice(np.concatenate(chosen), warnings=() if highest == STEPS else (falls,))


def difficult(random_loss: NDArray[np.float64], sources: NDArray[np.int64], budget: int) -> NDArray[np.bool_]:
    """A: return the surviving rows [n]: each source's high-loss cluster, or all of a source that fits its share.

    Sources are processed by size, smallest first. A source's share is the budget over the sources, without those that
    are kept completely.
    """
    kept = np.zeros(len(sources), dtype=np.bool_)
    names, sizes = np.unique(sources, return_counts=True)
    left, remaining = budget, len(names)
    for which in np.argsort(sizes, kind="stable"):
        own = np.flatnonzero(sources == names[which])
        if len(own) <= left // remaining:
            kept[own] = True
            left, remaining = left - len(own), max(1, remaining - 1)
        else:
            kept[own] = two_means(random_loss[own])
    return kept


def difference(first: float, last: float) -> float:
    """C: return diff_g = sqrt(max(0, (L_last - L_first) * L_last)) of a group's mean losses."""
    return float(np.sqrt(max(0.0, (last - first) * last)))


def allocate(budget: int, sizes: Sequence[int], differences: Sequence[float]) -> list[int]:
    """C: return the quota of each group: softmax of the differences, capped by its size; the sum equals the budget.

    From the smallest group on, each gets its share, rounded down, of what is left; so a group smaller than its share is
    taken completely, and the others share the rest. What they all leave goes to the largest group with room.
    """
    quotas = [0] * len(sizes)
    ascending = sorted(range(len(sizes)), key=lambda group: (sizes[group], group))
    weights = np.exp(np.array(differences) - max(differences, default=0.0)).tolist()
    left = budget
    for place, group in enumerate(ascending):
        share = weights[group] / sum(weights[other] for other in ascending[place:])
        quotas[group] = min(sizes[group], int(share * left))
        left -= quotas[group]
    for group in reversed(ascending):
        more = min(left, sizes[group] - quotas[group])
        quotas[group] += more
        left -= more
    return quotas


def _quotas(
    losses: Path, survivors: Positions, domains: NDArray[np.int64], pairs: NDArray[np.int64], budget: int
) -> dict[int, int]:
    """C: return the quota of every pair of domain and source: first by domain, then by source within it."""
    quotas: dict[int, int] = {}
    names = np.unique(domains[survivors])
    of_domain = [np.flatnonzero(domains[survivors] == name) for name in names]
    for own, share in zip(of_domain, _shares(losses, [survivors[rows] for rows in of_domain], budget), strict=True):
        inside = np.unique(pairs[own])
        groups = [survivors[own[pairs[own] == pair]] for pair in inside]
        quotas |= dict(zip(inside.tolist(), _shares(losses, groups, share), strict=True))
    return quotas


def _shares(losses: Path, groups: Sequence[Positions], budget: int) -> list[int]:
    means = [losses.early[own].mean(axis=0) for own in groups]
    differences = [difference(float(mean[0]), float(mean[-1])) for mean in means]
    return allocate(budget, [len(own) for own in groups], differences)


def diverse(curve: NDArray[np.float64], drawn: NDArray[np.float64], quota: int, seed: int) -> Positions:
    """D: return rows [n, 8] of one source: each cluster's most brittle; single-row clusters come last, at random.

    Args:
        curve: l_1000 at the directional checkpoints, rows ordered by sample_id.
        drawn: a seeded random number per row [n].
        quota: number of rows wanted; at most n.
        seed: seed of k-means.
    """
    if quota in (0, len(curve)):
        return np.arange(quota)
    return from_clusters(k_means(curve, max(1, quota // SAMPLES_A_CLUSTER), seed).labels, curve, drawn, quota)


def from_clusters(labels: Labels, curve: NDArray[np.float64], drawn: NDArray[np.float64], quota: int) -> Positions:
    """D: return rows of one source, given the cluster of each row [n]; see `diverse`."""
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    clusters = sorted((own for own in members if len(own) > 1), key=lambda own: (len(own), int(own[0])))
    ranked = [own[np.argsort(-brittleness(curve[own]), kind="stable")] for own in clusters]
    taken: list[Positions] = []
    left = quota
    for place, own in enumerate(ranked):
        taken.append(own[: left // (len(ranked) - place)])
        left -= len(taken[-1])
    singles = np.array([own[0] for own in members if len(own) == 1], dtype=np.int64)
    taken.append(singles[np.argsort(drawn[singles], kind="stable")[:left]])
    left -= len(taken[-1])
    # Our addition, once singletons are used up too: the remaining rows of clusters, most brittle first.
    rest = [own[len(part) :] for own, part in zip(ranked, taken, strict=False)]
    taken.append(_round_robin(rest, left))
    return np.concatenate(taken).astype(np.int64)


def brittleness(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return l_1000(theta_8) - l_1000(theta_1) of a cluster's rows [n], negated unless the cluster's mean rises."""
    change: NDArray[np.float64] = curve[:, -1] - curve[:, 0]
    return change if change.mean() > 0.0 else -change


def _round_robin(lists: Sequence[Positions], count: int) -> Positions:
    taken = [own[turn] for turn in range(max(map(len, lists), default=0)) for own in lists if turn < len(own)]
    return np.array(taken[:count], dtype=np.int64)


class Temp(SelectorSection):
    """Select the most brittle hard samples of each cluster of losses along the path, within each source (TEMP).

    A source's share of the budget depends on how much the path raises the loss of its hard samples. Without a path,
    select the hardest of the hard samples.
    """

    kind: Literal["temp"] = "temp"
    seed: int = Field(0, ge=0, lt=2**63, description="seed of k-means and of the draws among singletons")


def _temp(selector: Temp, found: Candidates) -> Choice:
    features, places = features_of(selector.kind, found), np.flatnonzero(found.may)
    if not len(places):
        return Choice(places)
    own = found.pool[places]
    limit = len(places) if found.limit is None else found.limit
    domains, sources = (
        own[column].fill_null("").rank("dense").cast(pl.Int64).to_numpy() for column in ("domain", "source")
    )
    losses = losses_of(features.vectors(own["sample_id"]))
    if losses.path is None:
        hard = places[difficult(losses.random, sources, limit)]
        return Choice(found.ranked(True, hard))
    choice = temp(losses.random, losses.path, own["sample_id"], domains, sources, limit, selector.seed)
    return replace(choice, order=places[choice.order])


SELECTORS = [
    Selector(
        Temp,
        _temp,
        vectors=True,
        signal="perturbed_losses",
        needs="losses at perturbed checkpoints",
        apportions=True,
        version=2,
    )
]
