"""Embeddings as arrays, and their cosines with validation samples: the same to the bit whatever stands beside a row."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

BLOCK = 1024
"""Rows of a product, always: matrix products of one shape treat every row alike."""
LEAST_COLUMNS = 16
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
    right = _padded(unit(others))
    block = np.zeros((BLOCK, vectors.shape[1]), dtype=np.float32)
    for start in range(0, len(vectors), BLOCK):
        rows = slice(start, min(start + BLOCK, len(vectors)))
        count = rows.stop - start
        block[:count] = unit(vectors[rows])
        block[count:] = 0.0
        yield rows, (right @ block.T)[: len(others), :count].T


def cosine_rows(others: NDArray[np.floating], vectors: NDArray[np.floating]) -> Iterator[Vectors]:
    """Of each of the others [M, d] its cosines [N] with all vectors [N, d]; the same numbers as `cosines`."""
    group = max(1, ROWS_BYTES // (4 * max(1, len(vectors))))
    for start in range(0, len(others), group):
        members = others[start : start + group]
        rows = np.empty((len(members), len(vectors)), dtype=np.float32)
        for places, block in cosines(vectors, members):
            rows[:, places] = block.T
        yield from rows


def _padded(vectors: Vectors) -> Vectors:
    """Vectors with zeros below, to a multiple of LEAST_COLUMNS rows."""
    padded = np.zeros((max(1, -(-len(vectors) // LEAST_COLUMNS)) * LEAST_COLUMNS, vectors.shape[1]), dtype=np.float32)
    padded[: len(vectors)] = vectors
    return padded
