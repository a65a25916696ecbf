"""Mean and standard deviation of groups of numbers, identical to the bit regardless of order and pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from curation_assets.methods.exact_sums import ExactSum

GROUP, VALUE = "group", "value"
"""Columns of the rows that moments are computed from."""


class Moments(NamedTuple):
    """Moments of a group of finite numbers.

    Attributes:
        size: how many numbers there are.
        mean: their mean; NaN if their sum overflows.
        deviation: their standard deviation (n - 1); 0 for a single number, NaN on overflow.
    """

    size: int
    mean: float
    deviation: float

    @property
    def varies(self) -> bool:
        """Return whether the deviation is a positive number."""
        return 0.0 < self.deviation < math.inf

    def z(self, value: float) -> float:
        """Return a number's distance from the mean in standard deviations; 0 if the group does not vary."""
        return (value - self.mean) / self.deviation if self.varies else 0.0


def moments_by_group(pieces: Callable[[], Iterable[pl.DataFrame]]) -> dict[Any, Moments]:
    """Return the moments of every group.

    Args:
        pieces: returns rows with columns GROUP (null is a group of its own) and VALUE (finite Float64), in pieces; it
            is called twice.
    """
    sums = _sums(pieces())
    # Every group has a number, and thus a mean.
    means = {group: own.mean() or 0.0 for group, own in sums.items()}
    squares = _sums(pieces(), means)
    return {
        group: Moments(own.count, means[group], math.sqrt(squares[group].value() / max(1, own.count - 1)))
        for group, own in sums.items()
    }


def _sums(pieces: Iterable[pl.DataFrame], means: Mapping[Any, float] | None = None) -> dict[Any, ExactSum]:
    """Return the sum of each group's numbers; with means, of their squared distances from these."""
    sums: dict[Any, ExactSum] = {}
    for rows in pieces:
        for (group,), own in rows.group_by(GROUP):
            values = own[VALUE].to_numpy()
            if means is not None:
                # An overflow makes the sum NaN.
                with np.errstate(over="ignore", invalid="ignore"):
                    values = (values - means[group]) ** 2
            sums.setdefault(group, ExactSum()).add(values)
    return sums
