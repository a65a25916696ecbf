"""Exact apportionment: seven percent of a hundred is exactly seven."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def ceil_share(fraction: Fraction, count: int) -> int:
    """Return ceil(fraction * count) in exact arithmetic; build the fraction from the decimal as written."""
    product = fraction * count
    return -(-product.numerator // product.denominator)


def largest_remainders(total: int, weights: Sequence[int]) -> list[int]:
    """Return integer shares of a total in proportion to weights, by the largest-remainder method.

    Ties between remainders go to the earlier weight. If all weights are zero, so are all shares.
    """
    whole = sum(weights)
    if whole == 0:
        return [0] * len(weights)
    shares = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda place: -(total * weights[place] % whole))
    for place in by_remainder[: total - sum(shares)]:
        shares[place] += 1
    return shares
