"""Counter-based random draws by key, independent of order, batch, shard and machine."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

DIGITS = 13
"""Hexadecimal digits of a sample_id that a draw uses: 52 bits."""


def draw_bits(sample_ids: pl.Series, seed: int) -> NDArray[np.uint64]:
    """Return 64 random bits [N] for each hexadecimal id and a seed (splitmix64's finisher)."""
    prefix = sample_ids.str.head(DIGITS).str.to_integer(base=16).cast(pl.UInt64).to_numpy()
    # Mix twice, so that neighbouring seeds and ids are uncorrelated.
    return _mix(prefix + _mix(np.full(1, seed, dtype=np.uint64)))


def uniform(sample_ids: pl.Series, seed: int) -> pl.Series:
    """Return a draw from [0, 1) for each id."""
    return pl.Series((draw_bits(sample_ids, seed) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def sequence(count: int, seed: int) -> NDArray[np.float64]:
    """Return draws number 0 to `count` - 1 from [0, 1) of a seed; they are unrelated to those of `uniform`."""
    numbers = np.arange(count, dtype=np.uint64)
    bits = _mix(numbers + _mix(_mix(np.full(1, seed, dtype=np.uint64))))
    drawn: NDArray[np.float64] = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return drawn


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return mixed
