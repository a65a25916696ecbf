"""Concordance, win rates and intervals against slow twins, and what they say when there is nothing to find."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation_assets.evaluation.concordance import (
    DRAWS,
    Estimate,
    concordance,
    explained_share,
    student_t,
    win_rate,
)

few = st.integers(0, 3)


def slow_concordance(
    score: list[float], label: list[float], group: list[int] | None, weight: list[float]
) -> tuple[float, float]:
    """Weighted concordant pairs, and all weighted pairs, by two loops."""
    wins = pairs = 0.0
    for i in range(len(score)):
        for j in range(len(score)):
            if label[i] > label[j] and (group is None or group[i] == group[j]):
                pairs += weight[i] * weight[j]
                wins += weight[i] * weight[j] * (1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0)
    return wins, pairs


@given(st.lists(st.tuples(few, few, few, few), min_size=1, max_size=12), st.booleans())
def test_concordance_is_that_of_two_loops(rows: list[tuple[int, int, int, int]], grouped: bool) -> None:
    score, label, group = ([float(row[place]) for row in rows] for place in range(3))
    clusters = sorted({row[3] for row in rows})
    cluster = [clusters.index(row[3]) for row in rows]
    groups = [int(one) for one in group] if grouped else None
    found = concordance(
        np.array(score), np.array(label), np.array(cluster), None if groups is None else np.array(groups)
    )
    wins, pairs = slow_concordance(score, label, groups, [1.0] * len(score))
    if not pairs:
        assert found is None
        return
    assert found is not None
    assert found.pairs == pairs
    assert found.value == pytest.approx(wins / pairs)
    drawn = np.random.default_rng(0).multinomial(len(clusters), np.full(len(clusters), 1 / len(clusters)), size=DRAWS)
    values = []
    for counts in drawn[:50]:
        wins, pairs = slow_concordance(score, label, groups, [float(counts[one]) for one in cluster])
        if pairs:
            values.append(wins / pairs)
    if len(clusters) == 1:
        assert found.deviation == pytest.approx(0.0, abs=1e-6)
    elif len(values) > 40:
        # Of the first 50 draws only: the same spread within sampling error.
        assert found.deviation == pytest.approx(float(np.std(values, ddof=1)), rel=0.6, abs=0.06)


@given(st.lists(st.tuples(few, few, few), min_size=1, max_size=20))
def test_a_win_rate_is_that_of_a_loop(rows: list[tuple[int, int, int]]) -> None:
    clusters = sorted({row[2] for row in rows})
    found = win_rate(
        np.array([float(row[0]) for row in rows]),
        np.array([float(row[1]) for row in rows]),
        np.array([clusters.index(row[2]) for row in rows]),
    )
    wins = sum(1.0 if better > worse else 0.5 if better == worse else 0.0 for better, worse, _ in rows)
    assert found is not None
    assert found.value == pytest.approx(wins / len(rows))
    assert found.clusters == len(clusters)


def test_without_pairs_there_is_no_estimate() -> None:
    nothing, none = np.array([]), np.array([], dtype=np.int64)
    assert win_rate(nothing, nothing, none) is None
    assert concordance(np.array([1.0, 2.0]), np.array([1.0, 1.0]), np.array([0, 1])) is None


def test_only_clusters_with_a_pair_count() -> None:
    """Compared within prompts, one prompt with two labels says little, however many prompts have one."""
    cluster = np.repeat(np.arange(50), 2)
    label = np.ones(100)
    label[0] = 0.0
    found = concordance(np.arange(100.0), label, cluster, cluster)
    assert found is not None
    assert (found.value, found.pairs, found.clusters) == (1.0, 1, 1)
    assert found.interval().low < 0.5
    # Over all pairs too, one wrong sample is one comparison.
    over_all = concordance(np.arange(100.0), label, cluster)
    assert over_all is not None
    assert (over_all.pairs, over_all.clusters) == (99, 1)


@pytest.mark.parametrize(("prompts", "per_prompt"), [(8, 12), (20, 5), (100, 1)])
def test_few_prompts_seldom_show_an_effect_that_is_none(prompts: int, per_prompt: int) -> None:
    """At the level of 100 comparisons: one of 2,000 by right; none of 300 here, give or take one."""
    rng, level = np.random.default_rng(1), 1 - 0.05 / 100
    cluster = np.repeat(np.arange(prompts), per_prompt)
    label = np.repeat([1.0, 0.0], len(cluster))
    shown = 0
    for _ in range(150):
        sound, flawed = rng.normal(size=len(cluster)), rng.normal(size=len(cluster))
        both = np.concatenate([sound, flawed])
        for found in (win_rate(sound, flawed, cluster), concordance(both, label, np.concatenate([cluster, cluster]))):
            assert found is not None
            low, high = found.interval(level)
            shown += not low <= 0.5 <= high
    assert shown <= 1


@given(st.lists(st.tuples(few, few, few), min_size=1, max_size=12))
def test_groups_inside_clusters_are_counted_one_by_one(rows: list[tuple[int, int, int]]) -> None:
    score, label, group = ([float(row[place]) for row in rows] for place in range(3))
    groups = sorted(set(group))
    numbers = [groups.index(one) for one in group]
    # Two groups to a cluster.
    found = concordance(np.array(score), np.array(label), np.array(numbers) // 2, np.array(numbers))
    wins, pairs = slow_concordance(score, label, numbers, [1.0] * len(score))
    assert (found is None) == (pairs == 0)
    if found is not None:
        assert found.value == pytest.approx(wins / pairs)
        assert found.pairs == pairs


def test_the_interval_is_wilsons_where_all_pairs_are_independent() -> None:
    # 90 of 100, from Wilson's formula at 95 %.
    estimate = Estimate(0.9, math.sqrt(0.09 / 100), 10_000, 100)
    low, high = estimate.interval()
    assert low == pytest.approx(0.8256, abs=1e-4)
    assert high == pytest.approx(0.9448, abs=1e-4)
    assert student_t(0.95, 10_000) == pytest.approx(1.959964, abs=1e-6)


def test_a_few_wins_show_nothing_and_ties_are_not_certain() -> None:
    assert Estimate(1.0, 0.0, 3, 3).interval().low < 0.5
    assert Estimate(1.0, 0.0, 10, 10).interval().low > 0.5
    low, high = Estimate(0.5, 0.0, 100, 100).interval()
    assert low < 0.45
    assert high > 0.55


def test_clusters_widen_the_interval() -> None:
    rng = np.random.default_rng(3)
    per_cluster = rng.random(20) < 0.7
    better = np.repeat(per_cluster, 10).astype(np.float64)
    apart = win_rate(better, np.full(200, 0.5), np.arange(200))
    together = win_rate(better, np.full(200, 0.5), np.repeat(np.arange(20), 10))
    assert apart is not None
    assert together is not None
    assert apart.value == together.value
    assert together.deviation > 2 * apart.deviation


@pytest.mark.parametrize("pairs", [20, 100])
def test_labels_without_meaning_are_within_the_interval(pairs: int) -> None:
    """95 % of intervals hold .5 if sound and flawed are exchanged at random; at least 90 % have to."""
    rng = np.random.default_rng(pairs)
    cluster, label = np.arange(pairs), np.concatenate([np.ones(pairs), np.zeros(pairs)])
    held = []
    for _ in range(200):
        sound = rng.normal(size=pairs)
        flawed = 0.7 * sound + 0.7 * rng.normal(size=pairs) - 1.0
        swapped = rng.random(pairs) < 0.5
        left, right = np.where(swapped, flawed, sound), np.where(swapped, sound, flawed)
        both = np.concatenate([left, right])
        for found in (win_rate(left, right, cluster), concordance(both, label, np.concatenate([cluster, cluster]))):
            assert found is not None
            low, high = found.interval()
            held.append(low <= 0.5 <= high)
    assert np.mean(held) >= 0.9


def test_the_share_that_groups_explain() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(4), 500)
    noise = rng.normal(size=2000)
    assert explained_share(noise, group) == pytest.approx(0.0, abs=0.01)
    # Group means with a variance of 1.25 beside noise of 1.
    assert explained_share(noise + group, group) == pytest.approx(1.25 / 2.25, abs=0.03)
    assert explained_share(group.astype(np.float64), group) == pytest.approx(1.0)
    assert explained_share(noise, np.zeros(2000, dtype=np.int64)) is None
    assert explained_share(np.ones(2000), group) is None
    # Each sample its own group explains nothing.
    assert explained_share(noise[:5], np.arange(5)) is None


def test_a_smaller_effect_needs_more_pairs() -> None:
    few_pairs, many = Estimate(0.5, 0.05, 2000, 100), Estimate(0.5, 0.005, 10_000, 10_000)
    assert few_pairs.detectable() == pytest.approx(0.14, abs=0.005)
    assert many.detectable() == pytest.approx(0.014, abs=0.0005)
    assert few_pairs.detectable(0.9999) > few_pairs.detectable()
