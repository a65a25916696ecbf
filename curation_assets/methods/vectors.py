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


def _on_grid(vectors: Vectors) -> NDArray[np.float64]:
    """Return unit vectors with components rounded to multiples of 1 / GRID.

    Products of such components are multiples of 2^-52, and no partial sum leaves [-2, 2], so fp64 holds each
    exactly. Dot products therefore do not depend on the summation order of a matrix product, which varies with a
    row's position.
    """
    rounded: NDArray[np.float64] = np.rint(vectors.astype(np.float64) * GRID) / GRID
    return rounded
