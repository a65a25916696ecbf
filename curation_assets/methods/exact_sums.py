"""Exact sums, independent of order and batching, and rounded once at the end."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

PIECE = 1 << 15
"""Numbers per batch: few enough for the processor's cache, and for doubles to sum the halves of mantissas exactly."""

MANTISSA = 53
HALF = 26
LOWEST = -1073
"""Smallest exponent returned by `frexp`."""


class ExactSum:
    """The exact sum of all numbers added.

    Attributes:
        count: how many numbers were added.
    """

    def __init__(self) -> None:
        self.count = 0
        self._units = 0  # of 2 ** (LOWEST - MANTISSA)
        self._finite = True

    def add(self, values: NDArray[np.float64]) -> None:
        """Add numbers [n]."""
        for start in range(0, len(values), PIECE):
            self._add(values[start : start + PIECE])

    def _add(self, values: NDArray[np.float64]) -> None:
        self.count += len(values)
        if not np.isfinite(values).all():
            self._finite = False
            return
        fractions, exponents = np.frexp(values)
        places = exponents - LOWEST
        scaled = fractions * 2.0 ** (MANTISSA - HALF)
        high = np.floor(scaled)
        low = (scaled - high) * 2.0**HALF
        for part, shift in ((high, HALF), (low, 0)):
            # Grouped by exponent, both halves are integers.
            sums = np.bincount(places, weights=part)
            for place in np.flatnonzero(sums).tolist():
                self._units += int(sums[place]) << (place + shift)

    def value(self) -> float:
        """Return the sum, correctly rounded; NaN if a number is not finite or the sum overflows."""
        return self._rounded(1)

    def mean(self) -> float | None:
        """Return the mean, correctly rounded; None without numbers, NaN as in `value`."""
        return self._rounded(self.count) if self.count else None

    def _rounded(self, parts: int) -> float:
        try:
            return float(Fraction(self._units, parts << (MANTISSA - LOWEST))) if self._finite else math.nan
        except OverflowError:
            return math.nan
