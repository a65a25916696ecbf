"""Embeddings as arrays, and their cosines with validation samples: the same to the bit whatever stands beside a row."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

BLOCK = 1024
"""Rows of a product."""
GRID = 2.0**26
"""To multiples of one part in so many components are rounded: less than fp32 rounds a number near 1."""
ROWS_BYTES = 512 * 2**20
"""Memory of the cosines that `cosine_rows` holds at once."""

Vectors = NDArray[np.float32]


def matrix(vectors: pl.Series) -> Vectors:
    """Lists of equal length, none null, as one array [N, d]."""
    if vectors.is_empty():
        return np.empty((0, 0), dtype=np.float32)
    return vectors.explode().to_numpy().astype(np.float32).reshape(len(vectors), -1)


def unit(vectors: NDArray[np.floating]) -> Vectors:
    """Vectors [N, d] of length one; a zero vector stays zero."""
    single = vectors.astype(np.float32)
    norms = np.sqrt(np.einsum("nd,nd->n", single, single))
    length: Vectors = np.where(norms > 0.0, norms, 1.0).astype(np.float32)
    scaled: Vectors = single / length[:, None]
    return scaled


def cosines(vectors: NDArray[np.floating], others: NDArray[np.floating]) -> Iterator[tuple[slice, Vectors]]:
    """Cosines [rows, M] of blocks of vectors [N, d] with all of the others [M, d], and which rows they are of."""
    right = _on_grid(unit(others)).T
    for start in range(0, len(vectors), BLOCK):
        rows = slice(start, min(start + BLOCK, len(vectors)))
        yield rows, (_on_grid(unit(vectors[rows])) @ right).astype(np.float32)


def cosine_rows(others: NDArray[np.floating], vectors: NDArray[np.floating]) -> Iterator[Vectors]:
    """Of each of the others [M, d] its cosines [N] with all vectors [N, d]; the same numbers as `cosines`."""
    group = max(1, ROWS_BYTES // (4 * max(1, len(vectors))))
    for start in range(0, len(others), group):
        members = others[start : start + group]
        rows = np.empty((len(members), len(vectors)), dtype=np.float32)
        for places, block in cosines(vectors, members):
            rows[:, places] = block.T
        yield from rows


def _on_grid(vectors: Vectors) -> NDArray[np.float64]:
    """Vectors of length one, their components rounded to multiples of 1 / GRID.

    Products of such components are multiples of 2^-52, and no sum of them leaves [-2, 2]: fp64 holds each exactly, so
    that dot products do not depend on the order in which a matrix product adds up, which differs with a row's place.
    """
    rounded: NDArray[np.float64] = np.rint(vectors.astype(np.float64) * GRID) / GRID
    return rounded
