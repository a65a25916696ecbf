"""Shares of a whole: exact, so that seven percent of a hundred is seven."""

from __future__ import annotations

from fractions import Fraction


def ceil_share(fraction: Fraction, count: int) -> int:
    """ceil(fraction * count) in exact arithmetic; make the fraction from the decimal that was written."""
    product = fraction * count
    return -(-product.numerator // product.denominator)
