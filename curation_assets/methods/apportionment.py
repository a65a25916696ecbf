"""Shares of a whole: exact, so that seven percent of a hundred is seven."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def ceil_share(fraction: Fraction, count: int) -> int:
    """ceil(fraction * count) in exact arithmetic; make the fraction from the decimal that was written."""
    product = fraction * count
    return -(-product.numerator // product.denominator)


def largest_remainders(total: int, weights: Sequence[int]) -> list[int]:
    """Whole shares of a total in proportion to weights; what rounding leaves goes to the largest remainders.

    Of equal remainders the earlier one counts. All zero where all weights are.
    """
    whole = sum(weights)
    if whole == 0:
        return [0] * len(weights)
    shares = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda place: -(total * weights[place] % whole))
    for place in by_remainder[: total - sum(shares)]:
        shares[place] += 1
    return shares
