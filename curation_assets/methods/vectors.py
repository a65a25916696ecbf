"""Embeddings as arrays, and their cosines with validation samples, bitwise independent of other rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

BLOCK = 1024
"""Rows per matrix product."""
GRID = 2.0**26
"""Components are rounded to multiples of 1 / GRID, which is finer than fp32 rounding near 1."""
ROWS_BYTES = 512 * 2**20
"""Memory limit for the cosines that `cosine_rows` holds at once."""

UNITS = 2.0**23
"""`similarities` counts cosines in units of 1 / UNITS: whole numbers that fp32 holds exactly, and fp64 adds exactly."""

Vectors = NDArray[np.float32]


def matrix(vectors: pl.Series) -> Vectors:
    """Return lists of equal length, without nulls, as one array [N, d]."""
    if vectors.is_empty():
        return np.empty((0, 0), dtype=np.float32)
    return vectors.explode().to_numpy().astype(np.float32).reshape(len(vectors), -1)


def unit(vectors: NDArray[np.floating]) -> Vectors:
    """Return vectors [N, d] scaled to unit length; a zero vector stays zero."""
    single = vectors.astype(np.float32)
    norms = np.sqrt(np.einsum("nd,nd->n", single, single))
    length: Vectors = np.where(norms > 0.0, norms, 1.0).astype(np.float32)
    scaled: Vectors = single / length[:, None]
    return scaled


def cosines(vectors: NDArray[np.floating], others: NDArray[np.floating]) -> Iterator[tuple[slice, Vectors]]:
    """Yield blocks of rows of vectors [N, d] with their cosines [rows, M] with all others [M, d]."""
    right = _on_grid(unit(others)).T
    for start in range(0, len(vectors), BLOCK):
        rows = slice(start, min(start + BLOCK, len(vectors)))
        yield rows, (_on_grid(unit(vectors[rows])) @ right).astype(np.float32)


def cosine_rows(others: NDArray[np.floating], vectors: NDArray[np.floating]) -> Iterator[Vectors]:
    """Yield, for each of the others [M, d], its cosines [N] with all vectors [N, d]; the numbers equal those of
    `cosines`."""
    group = max(1, ROWS_BYTES // (4 * max(1, len(vectors))))
    for start in range(0, len(others), group):
        members = others[start : start + group]
        rows = np.empty((len(members), len(vectors)), dtype=np.float32)
        for places, block in cosines(vectors, members):
            rows[:, places] = block.T
        yield from rows


def directions(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return vectors [N, d] scaled to unit length, for `similarities`; a zero vector stays zero."""
    return _on_grid(unit(vectors))


def similarities(left: NDArray[np.float64], right: NDArray[np.float64]) -> Vectors:
    """Return cosines of directions [N, d] and [M, d] as whole numbers of 1 / UNITS [N, M], from -UNITS to UNITS.

    They do not depend on the position or the number of rows, and sums of up to 2^30 of them are exact in fp64. The
    cosine with a zero vector is 0.
    """
    found = left @ right.T
    found *= UNITS
    np.rint(found, out=found)
    np.clip(found, -UNITS, UNITS, out=found)
    return found.astype(np.float32)


def _on_grid(vectors: Vectors) -> NDArray[np.float64]:
    """Return unit vectors with components rounded to multiples of 1 / GRID.

    Products of such components are multiples of 2^-52, and no partial sum leaves [-2, 2], so fp64 holds each
    exactly. Dot products therefore do not depend on the summation order of a matrix product, which varies with a
    row's position.
    """
    rounded: NDArray[np.float64] = np.rint(vectors.astype(np.float64) * GRID) / GRID
    return rounded
