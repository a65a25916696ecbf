"""TEMP's choice against loops written from methods.md, section 2."""

from __future__ import annotations

import math
import random

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curation_assets.methods.random_draws import uniform
from curation_assets.methods.selectors.clusters import k_means, two_means
from curation_assets.methods.selectors.temp import (
    Losses,
    Path,
    allocate,
    brittleness,
    difference,
    difficult,
    diverse,
    losses_of,
    temp,
)

GROUPS = st.lists(st.tuples(st.integers(0, 30), st.floats(0, 4)), min_size=1, max_size=6)


def made(
    count: int, seed: int = 0
) -> tuple[NDArray[np.float64], Path, pl.Series, NDArray[np.int64], NDArray[np.int64]]:
    draw = np.random.default_rng(seed)
    curve = draw.normal(2.0, 0.5, (count, 1)) + np.cumsum(draw.normal(0.1, 0.05, (count, 8)), axis=1)
    hundred = curve + np.linspace(0.2, 0.3, 8)
    losses = losses_of(np.column_stack([draw.gamma(2.0, 1.0, count), hundred, curve]))
    assert losses.path is not None
    ids = pl.Series("sample_id", [f"{n * 2654435761 % 2**52:013x}{n:019x}" for n in range(count)])
    sources = draw.choice(5, count, p=[0.4, 0.3, 0.2, 0.07, 0.03]).astype(np.int64)
    return losses.random, losses.path, ids, np.array([0, 0, 1, 1, 1])[sources], sources


@settings(max_examples=300, deadline=None)
@given(GROUPS, st.integers(0, 120))
def test_quotas_are_within_groups_and_add_up_to_the_budget(groups: list[tuple[int, float]], budget: int) -> None:
    sizes, differences = [size for size, _ in groups], [value for _, value in groups]
    quotas = allocate(budget, sizes, differences)
    assert sum(quotas) == min(budget, sum(sizes))
    assert all(0 <= quota <= size for quota, size in zip(quotas, sizes, strict=True))


def test_shares_are_the_softmax_where_there_is_room() -> None:
    quotas = allocate(1000, [5000, 5000, 5000], [0.0, 1.0, 2.0])
    powers = [math.exp(value) for value in (0.0, 1.0, 2.0)]
    wanted = [1000 * power / sum(powers) for power in powers]
    # What rounding leaves goes to one group.
    assert [abs(quota - share) < 3 for quota, share in zip(quotas, wanted, strict=True)] == [True] * 3


def test_a_share_is_rounded_down_of_what_smaller_groups_leave() -> None:
    # Thirds of 10: 3, then half of 7, then the rest.
    assert allocate(10, [20, 30, 40], [1.0, 1.0, 1.0]) == [3, 3, 4]
    assert allocate(11, [20, 30, 40], [1.0, 1.0, 1.0]) == [3, 4, 4]


def test_a_source_above_its_share_does_not_change_the_share_of_the_next() -> None:
    # Both exceed the share of 1, although 2 would be left for the second.
    assert difficult(np.array([1.0, 3.0, 1.0, 3.0]), np.array([0, 0, 1, 1]), 3).tolist() == [False, True] * 2


def test_a_small_group_is_taken_whole_and_the_rest_is_shared_again() -> None:
    assert allocate(100, [10, 500, 500], [0.0, 0.0, 0.0]) == [10, 45, 45]
    assert allocate(101, [10, 500, 600], [0.0, 0.0, 0.0]) == [10, 45, 46]  # the largest group takes what is left


@pytest.mark.parametrize(
    ("first", "last", "found"), [(1.0, 3.0, math.sqrt(6.0)), (3.0, 1.0, 0.0), (2.0, 2.0, 0.0), (0.0, 2.0, 2.0)]
)
def test_the_difference_of_a_group(first: float, last: float, found: float) -> None:
    assert difference(first, last) == pytest.approx(found)


def test_the_filter_keeps_small_sources_whole_and_of_others_the_hard_cluster() -> None:
    random_losses, _, _, _, sources = made(400)
    budget = 80
    kept = difficult(random_losses, sources, budget)
    left, sizes = budget, sorted((int((sources == s).sum()), s) for s in range(5))
    whole = 0
    for size, source in sizes:
        own = sources == source
        if size <= left // (5 - whole):
            assert kept[own].all()
            whole, left = whole + 1, left - size
        else:
            assert np.array_equal(kept[own], two_means(random_losses[own]))
            assert 0 < kept[own].sum() < size
    assert 0 < whole < 5


def test_of_each_cluster_the_most_brittle_smallest_clusters_first() -> None:
    _, path, _, _, _ = made(41, seed=4)
    drawn = np.random.default_rng(0).random(41)
    for quota in range(41):
        found = diverse(path.curve, drawn, quota, seed=3)
        assert len(found) == len(set(found.tolist())) == quota
        assert sorted(found.tolist()) == sorted(plain(path.curve, drawn, quota))


def plain(curve: NDArray[np.float64], drawn: NDArray[np.float64], quota: int) -> list[int]:
    """Section D, row by row."""
    labels = k_means(curve, max(1, quota // 4), 3).labels.tolist()
    groups: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        groups.setdefault(label, []).append(row)
    clusters = sorted((rows for rows in groups.values() if len(rows) >= 2), key=lambda rows: (len(rows), rows[0]))
    chosen: list[int] = []
    ranked = []
    for place, rows in enumerate(clusters):
        changes = {row: curve[row, 7] - curve[row, 0] for row in rows}
        falls = sum(changes.values()) / len(rows) < 0
        order = sorted(rows, key=lambda row: (changes[row] if falls else -changes[row], row))
        share = (quota - len(chosen)) // (len(clusters) - place)
        chosen += order[:share]
        ranked.append(order[share:])
    singles = sorted((rows[0] for rows in groups.values() if len(rows) == 1), key=lambda row: drawn[row])
    chosen += singles[: quota - len(chosen)]
    turn = 0
    while len(chosen) < quota:
        chosen += [order[turn] for order in ranked if turn < len(order)][: quota - len(chosen)]
        turn += 1
    return chosen


def test_the_sign_is_flipped_where_a_cluster_falls() -> None:
    rising = np.linspace([1.0, 1.0], [2.0, 4.0], 8).T
    assert brittleness(rising).tolist() == [1.0, 3.0]
    assert brittleness(rising[:, ::-1]).tolist() == [1.0, 3.0]


def test_clusters_follow_the_quota_and_not_the_pool() -> None:
    _, path, _, _, _ = made(400, seed=2)
    drawn = np.random.default_rng(0).random(400)
    labels = k_means(path.curve, 5, 3).labels
    chosen = diverse(path.curve, drawn, 20, seed=3)
    # Five clusters for a quota of 20; a hundred if the pool counted.
    assert (np.bincount(labels) >= 4).all()
    assert np.bincount(labels[chosen]).tolist() == [4] * 5


def test_a_path_whose_loss_is_not_highest_at_its_end_is_reported() -> None:
    random_losses, path, ids, domains, sources = made(200)
    assert temp(random_losses, path, ids, domains, sources, 20, seed=1).warnings == ()
    early = path.early.copy()
    early[:, 5] += 10.0
    (warning,) = temp(random_losses, Path(early, path.curve), ids, domains, sources, 20, seed=1).warnings
    assert warning == "the mean early loss is highest at directional checkpoint 6 of 8, not at the last one"


@pytest.mark.parametrize("budget", [0, 1, 7, 40, 120, 399, 400, 1000])
def test_a_budget_is_filled_as_far_as_survivors_reach(budget: int) -> None:
    random_losses, path, ids, domains, sources = made(400)
    chosen = temp(random_losses, path, ids, domains, sources, budget, seed=1).order
    survivors = int(difficult(random_losses, sources, budget).sum())
    assert len(chosen) == len(set(chosen.tolist())) == min(budget, survivors)


def test_the_order_of_rows_does_not_matter() -> None:
    random_losses, path, ids, domains, sources = made(300)
    mixed = np.array(random.Random(0).sample(range(300), 300))
    shuffled = Path(path.early[mixed], path.curve[mixed])
    first = temp(random_losses, path, ids, domains, sources, 50, seed=1).order
    second = temp(random_losses[mixed], shuffled, ids.gather(mixed), domains[mixed], sources[mixed], 50, seed=1).order
    assert sorted(ids.gather(first)) == sorted(ids.gather(mixed).gather(second))


def test_rows_of_losses_are_taken_apart() -> None:
    rows = np.arange(34, dtype=np.float32).reshape(2, 17)
    found = losses_of(rows)
    assert found.path is not None
    assert found.random.tolist() == [0, 17]
    assert found.path.early.tolist() == rows[:, 1:9].tolist()
    assert found.path.curve.tolist() == rows[:, 9:].tolist()
    alone = losses_of(rows[:, :1])
    assert isinstance(alone, Losses)
    assert alone.path is None


def test_another_seed_draws_other_singletons() -> None:
    ids = pl.Series([f"{n:013x}" for n in range(5)])
    assert uniform(ids, 0).to_list() != uniform(ids, 1).to_list()
