"""How well numbers order what is labelled: concordance (AUROC), paired win rates, and their intervals.

Intervals are score intervals (Wilson's) on the variance of a bootstrap over clusters, which are prompts here. Unlike
percentiles they stay honest for few pairs and near 0 and 1, and unlike Wilson's own they know that responses to one
prompt belong together. At any level they come from the same draws, so that a level corrected for many comparisons
needs no more of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
"""Bootstrap draws."""
CHANCE = 0.5
LEVEL = 0.95
POWER = 0.8

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
        clusters: number of clusters with a pair, which count instead of the deviation where that is 0.
        pairs: pairs that were compared.
    """

    value: float
    deviation: float
    clusters: int
    pairs: int

    @property
    def effective(self) -> float:
        """Number of independent comparisons with the same variance."""
        if self.deviation <= 0.0 or not 0.0 < self.value < 1.0:
            return float(self.clusters)
        return self.value * (1.0 - self.value) / self.deviation**2

    def interval(self, level: float = LEVEL) -> Interval:
        """Return Wilson's score interval at a level, such as .95."""
        n, z = self.effective, quantile(level)
        centre = (self.value + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(self.value * (1 - self.value) / n + (z / (2 * n)) ** 2)
        return Interval(max(0.0, centre - half), min(1.0, centre + half))

    def detectable(self, level: float = LEVEL) -> float:
        """Return the distance from chance that so many comparisons show at a level with probability POWER."""
        return min(CHANCE, (quantile(level) + NormalDist().inv_cdf(POWER)) * CHANCE / math.sqrt(self.effective))


def quantile(level: float) -> float:
    """Return z with P(|Z| <= z) = level, for a standard normal Z."""
    return NormalDist().inv_cdf(1 - (1 - level) / 2)


def concordance(score: Numbers, label: Numbers, cluster: Labels, group: Labels | None = None) -> Estimate | None:
    """Return the share of pairs with different labels whose scores are in the order of their labels, ties half.

    With two labels this is the AUROC. Time and memory are quadratic in n.

    Args:
        score: the numbers [n], finite.
        label: the labels [n].
        cluster: the cluster of each [n], from 0.
        group: compare only within these [n]; None: all pairs.

    Returns:
        The estimate; None if there is no such pair.
    """
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
    values = drawn[possible > 0] / possible[possible > 0]
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    taking_part = compared.any(axis=0) | compared.any(axis=1)
    return Estimate(float(above.sum(dtype=np.float64)) / pairs, deviation, len(np.unique(cluster[taking_part])), pairs)


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
    weights = _weights(cluster)
    totals = weights.sum(axis=1, dtype=np.float64)
    values = (weights @ wins.astype(np.float32)).astype(np.float64)[totals > 0] / totals[totals > 0]
    return Estimate(float(wins.mean()), float(values.std(ddof=1)), int(cluster.max()) + 1, len(wins))


def explained_share(score: Numbers, group: Labels) -> float | None:
    """Return the share of the scores' variance that groups explain, corrected for their number (epsilon squared).

    None for fewer than two groups, or constant scores.
    """
    n, groups = len(score), len(np.unique(group))
    total = float(((score - score.mean()) ** 2).sum()) if n else 0.0
    if groups < 2 or n <= groups or total <= 0.0:
        return None
    inner = sum(float(((own - own.mean()) ** 2).sum()) for own in (score[group == one] for one in np.unique(group)))
    return max(0.0, 1.0 - inner / total * (n - 1) / (n - groups))


def _above(left: Numbers, right: Numbers) -> Numbers:
    found: Numbers = (left > right) + 0.5 * (left == right)
    return found


def _weights(cluster: Labels) -> NDArray[np.float32]:
    """Return how often each item is in each bootstrap draw of clusters [DRAWS, n]; the draws are always the same."""
    count = int(cluster.max()) + 1
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1.0 / count), size=DRAWS)
    weights: NDArray[np.float32] = drawn[:, cluster].astype(np.float32)
    return weights
