"""How well numbers order what is labelled: concordance (AUROC), paired win rates, and their intervals.

Intervals are score intervals (Wilson's) on the variance of a bootstrap over clusters, which are prompts here, with the
quantile of Student's distribution for their number. Unlike percentiles they stay honest for few pairs and near 0 and 1,
and unlike Wilson's own they know that responses to one prompt belong together. At any level they come from the same
draws, so that a level corrected for many comparisons needs no more of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curation_assets.subsets.facts import epsilon_squared

DRAWS = 1000
"""Bootstrap draws."""
CHANCE = 0.5
LEVEL = 0.95
POWER = 0.8
HALVINGS = 80
"""Bisection steps over the angle: enough to reach double precision."""
NORMAL_FROM = 1000
"""Degrees of freedom from which Student's distribution is taken for the normal one."""

Numbers = NDArray[np.float64]
Labels = NDArray[np.int64]


class Interval(NamedTuple):
    """An interval [low, high]."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A share between 0 and 1, .5 by chance.

    Attributes:
        value: the share.
        deviation: its standard deviation over bootstrap draws.
        clusters: number of clusters on the side that has fewer of them: those with a pair count.
        pairs: pairs that were compared.
        most: upper bound of `effective`; None: no bound.
    """

    value: float
    deviation: float
    clusters: int
    pairs: int
    most: float | None = None

    @property
    def effective(self) -> float:
        """Number of independent comparisons with the same variance; of clusters where that is 0."""
        if self.deviation <= 0.0 or not 0.0 < self.value < 1.0:
            return float(self.clusters)
        found = self.value * (1.0 - self.value) / self.deviation**2
        return found if self.most is None else min(found, self.most)

    def interval(self, level: float = LEVEL) -> Interval:
        """Return Wilson's score interval at a level, such as .95."""
        n, z = self.effective, student_t(level, max(1, self.clusters - 1))
        centre = (self.value + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(self.value * (1 - self.value) / n + (z / (2 * n)) ** 2)
        return Interval(max(0.0, centre - half), min(1.0, centre + half))

    def detectable(self, level: float = LEVEL) -> float:
        """Return the distance from chance that so many comparisons show at a level with probability POWER."""
        quantiles = student_t(level, max(1, self.clusters - 1)) + NormalDist().inv_cdf(POWER)
        return min(CHANCE, quantiles * CHANCE / math.sqrt(self.effective))


def concordance(score: Numbers, label: Numbers, cluster: Labels, group: Labels | None = None) -> Estimate | None:
    """Return the share of pairs with different labels whose scores are in the order of their labels, ties half.

    With two labels this is the AUROC. Time and memory are quadratic in n, or in the size of the groups if each of them
    is inside a cluster.

    Args:
        score: the numbers [n], finite.
        label: the labels [n].
        cluster: the cluster of each [n], from 0.
        group: compare only within these [n]; None: all pairs.

    Returns:
        The estimate; None if there is no such pair.
    """
    if group is not None and len(np.unique(np.stack([group, cluster]), axis=1).T) == len(np.unique(group)):
        return _within_clusters(score, label, cluster, group)
    compared = label[:, None] > label[None, :]
    if group is not None:
        compared &= group[:, None] == group[None, :]
    pairs = int(compared.sum())
    if not pairs:
        return None
    above = np.where(compared, _above(score[:, None], score[None, :]), 0.0).astype(np.float32)
    weights = _weights(cluster)
    drawn = ((weights @ above) * weights).sum(axis=1, dtype=np.float64)
    possible = ((weights @ compared.astype(np.float32)) * weights).sum(axis=1, dtype=np.float64)
    sides = [len(np.unique(cluster[compared.any(axis=axis)])) for axis in (0, 1)]
    clusters = len(np.unique(cluster[compared.any(axis=0) | compared.any(axis=1)]))
    value = float(above.sum(dtype=np.float64)) / pairs
    return Estimate(value, _deviation(drawn, possible, clusters), min(sides), pairs)


def _within_clusters(score: Numbers, label: Numbers, cluster: Labels, group: Labels) -> Estimate | None:
    """Return the same for groups that are each inside a cluster: their pairs are counted one group at a time."""
    count = int(cluster.max()) + 1
    wins, pairs = np.zeros(count), np.zeros(count)
    order = np.argsort(group, kind="stable")
    for own in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        compared = label[own][:, None] > label[own][None, :]
        pairs[cluster[own[0]]] += compared.sum()
        wins[cluster[own[0]]] += (_above(score[own][:, None], score[own][None, :]) * compared).sum()
    if not pairs.any():
        return None
    weights, clusters = _weights(np.arange(count)), int((pairs > 0).sum())
    deviation = _deviation(weights @ wins, weights @ pairs, clusters)
    return Estimate(float(wins.sum() / pairs.sum()), deviation, clusters, int(pairs.sum()))


def win_rate(better: Numbers, worse: Numbers, cluster: Labels) -> Estimate | None:
    """Return the share of pairs whose first number is larger, ties half.

    Args:
        better: the numbers that should be larger [n], finite.
        worse: their counterparts [n], finite.
        cluster: the cluster of each pair [n], from 0.

    Returns:
        The estimate; None without any pair.
    """
    if not len(better):
        return None
    wins = _above(better, worse)
    weights, clusters = _weights(cluster), len(np.unique(cluster))
    deviation = _deviation(weights @ wins, weights.sum(axis=1, dtype=np.float64), clusters)
    # Clusters whose pairs happen to agree would look more certain than that many independent pairs.
    return Estimate(float(wins.mean()), deviation, clusters, len(wins), float(len(wins)))


def explained_share(score: Numbers, group: Labels) -> float | None:
    """Return the share of the scores' variance that groups explain, corrected for their number (epsilon squared).

    None for fewer than two groups, or constant scores.
    """
    n, groups = len(score), len(np.unique(group))
    total = float(((score - score.mean()) ** 2).sum()) if n else 0.0
    if groups < 2 or n <= groups or total <= 0.0:
        return None
    inner = sum(float(((own - own.mean()) ** 2).sum()) for own in (score[group == one] for one in np.unique(group)))
    return epsilon_squared(inner, total, n, groups)


def _deviation(wins: NDArray[Any], pairs: NDArray[Any], clusters: int) -> float:
    """Return the standard deviation over bootstrap draws, corrected for the number of clusters."""
    values = (wins[pairs > 0] / pairs[pairs > 0]).astype(np.float64)
    if len(values) < 2 or clusters < 2:
        return 0.0
    return float(values.std(ddof=1)) * math.sqrt(clusters / (clusters - 1))


def _above(left: Numbers, right: Numbers) -> Numbers:
    found: Numbers = (left > right) + 0.5 * (left == right)
    return found


def _weights(cluster: Labels) -> NDArray[np.float32]:
    """Return how often each item is in each bootstrap draw of clusters [DRAWS, n]; the draws are always the same."""
    count = int(cluster.max()) + 1
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1.0 / count), size=DRAWS)
    weights: NDArray[np.float32] = drawn[:, cluster].astype(np.float32)
    return weights


@cache
def student_t(confidence: float, freedom: int) -> float:
    """Return the t that |T| stays below with this probability, for T from Student's distribution.

    It bisects the angle atan(t / sqrt(n)), in which the distribution is a finite sum.
    """
    if freedom >= NORMAL_FROM:
        return NormalDist().inv_cdf(1 - (1 - confidence) / 2)
    low, high = 0.0, math.pi / 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _within(angle: float, freedom: int) -> float:
    """Return P(|T| < sqrt(n) tan(angle)) (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    square, sine = math.cos(angle) ** 2, math.sin(angle)
    if freedom % 2:
        term, total = math.cos(angle), 0.0
        for number in range(1, (freedom - 1) // 2 + 1):
            total += term
            term *= square * 2 * number / (2 * number + 1)
        return 2 / math.pi * (angle + sine * total)
    term, total = 1.0, 0.0
    for number in range(1, freedom // 2 + 1):
        total += term
        term *= square * (2 * number - 1) / (2 * number)
    return sine * total
