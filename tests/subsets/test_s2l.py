"""S2L's choice against a loop written from methods.md, section 5."""

from __future__ import annotations

import random

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from curation_assets.methods.random_draws import uniform
from curation_assets.methods.selectors.clusters import k_means
from curation_assets.methods.selectors.s2l import from_clusters, s2l

CLUSTERS, SEED = 9, 4


def made(count: int) -> tuple[NDArray[np.float64], pl.Series, NDArray[np.int64]]:
    draw = np.random.default_rng(count)
    vectors = draw.normal(2.0, 1.0, (count, 1)) - np.cumsum(draw.gamma(1.0, 0.1, (count, 6)), axis=1)
    ids = pl.Series("sample_id", [f"{n * 2654435761 % 2**52:013x}{n:019x}" for n in range(count)])
    return vectors, ids, draw.choice(3, count, p=[0.7, 0.25, 0.05]).astype(np.int64)


def plain(vectors: NDArray[np.float64], ids: pl.Series, sources: NDArray[np.int64], budget: int) -> list[str]:
    """Source by source, cluster by cluster, row by row."""
    drawn = dict(zip(ids, uniform(ids, SEED), strict=True))
    row_of = {name: row for row, name in enumerate(ids)}
    groups = [sorted(name for name, s in zip(ids, sources, strict=True) if s == source) for source in set(sources)]
    groups.sort(key=lambda names: (len(names), names[0]))
    chosen: list[str] = []
    left = min(budget, len(ids))
    for place, names in enumerate(groups):
        quota = left // (len(groups) - place)
        taken = list(names)
        if len(names) > quota:
            labels = k_means(vectors[[row_of[name] for name in names]], CLUSTERS, SEED).labels
            clusters: dict[int, list[str]] = {}
            for name, label in zip(names, labels.tolist(), strict=True):
                clusters.setdefault(label, []).append(name)
            ordered = sorted((own for own in clusters.values() if len(own) > 2), key=lambda own: (len(own), own[0]))
            taken = []
            for number, own in enumerate(ordered):
                share = (quota - len(taken)) // (len(ordered) - number)
                taken += sorted(own, key=lambda name: drawn[name])[:share]
            tiny = [name for own in clusters.values() if len(own) <= 2 for name in own]
            taken += sorted(tiny, key=lambda name: drawn[name])[: quota - len(taken)]
        chosen += taken
        left -= len(taken)
    return chosen


@pytest.mark.parametrize("budget", [0, 1, 10, 33, 100, 199, 200, 500])
def test_it_is_the_plain_loop_whatever_the_order_of_rows(budget: int) -> None:
    vectors, ids, sources = made(200)
    chosen = [str(name) for name in ids.gather(s2l(vectors, ids, sources, budget, CLUSTERS, SEED))]
    assert len(chosen) == len(set(chosen)) == min(budget, 200)
    assert sorted(chosen) == sorted(plain(vectors, ids, sources, budget))
    mixed = np.array(random.Random(1).sample(range(200), 200))
    again = s2l(vectors[mixed], ids.gather(mixed), sources[mixed], budget, CLUSTERS, SEED)
    assert ids.gather(mixed).gather(again).to_list() == chosen


def test_sources_smaller_than_their_quota_come_whole() -> None:
    vectors, ids, sources = made(200)
    chosen = s2l(vectors, ids, sources, 60, CLUSTERS, SEED)
    smallest = np.argmin(np.bincount(sources))
    assert (sources[chosen] == smallest).sum() == (sources == smallest).sum()
    # Small clusters give as much as large ones, as long as they have it.
    largest = np.argmax(np.bincount(sources))
    own = np.flatnonzero(sources == largest)
    own = own[np.argsort(ids.gather(own).to_numpy())]
    labels = dict(zip(own.tolist(), k_means(vectors[own], CLUSTERS, SEED).labels.tolist(), strict=True))
    counts = np.bincount([labels[row] for row in chosen.tolist() if row in labels], minlength=CLUSTERS)
    sizes = np.bincount(list(labels.values()))
    assert counts[sizes > counts].std() <= 1.0


def test_clusters_of_at_most_two_have_no_share() -> None:
    labels = np.repeat([0, 1, 2, 3], [1, 2, 3, 10])
    drawn = np.random.default_rng(0).random(16)
    # With a share for the tiny ones, the largest cluster would give three fewer.
    assert np.bincount(labels[from_clusters(labels, drawn, 8)], minlength=4).tolist() == [0, 0, 3, 5]
    assert np.bincount(labels[from_clusters(labels, drawn, 13)], minlength=4).tolist() == [0, 0, 3, 10]
    drawn_last = from_clusters(labels, drawn, 15)
    assert np.bincount(labels[drawn_last], minlength=4)[2:].tolist() == [3, 10]
    assert drawn_last[-2:].tolist() == np.argsort(drawn[:3])[:2].tolist()


def test_a_source_of_tiny_clusters_alone_is_drawn_from() -> None:
    drawn = np.array([0.4, 0.1, 0.3, 0.2])
    assert from_clusters(np.array([0, 0, 1, 2]), drawn, 3).tolist() == [1, 3, 2]
