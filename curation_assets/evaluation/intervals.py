"""Confidence intervals of means: Student's t over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

CONFIDENCE = 0.95
ONE_RUN = "one run: an interval requires at least two seeds"
HALVINGS = 80
"""Bisection steps over the angle: enough to reach double precision."""


class Interval(NamedTuple):
    """A mean with the ends of its interval; undefined values are None, and the reason is given."""

    mean: float | None
    low: float | None
    high: float | None
    reason: str | None = None


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the mean, plus and minus t s / sqrt(n): the interval for n normal values of unknown deviation.

    s is the standard deviation with n - 1, and t the quantile of Student's distribution with n - 1 degrees of
    freedom.
    """
    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean, None, None, ONE_RUN)
    half = student_t(confidence, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def student_t(confidence: float, freedom: int) -> float:
    """Return the t that |T| stays below with this probability, for T from Student's distribution.

    It bisects the angle atan(t / sqrt(n)), in which the distribution is a finite sum.
    """
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
