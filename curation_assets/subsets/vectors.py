"""Similarities of embeddings: cosines with validation samples, the same to the bit whatever is compared beside them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BLOCK = 1024
"""Rows of a product, always: matrix products of one shape treat every row alike."""
LEAST_COLUMNS = 16

Vectors = NDArray[np.float32]


def unit(vectors: NDArray[np.floating]) -> Vectors:
    """Vectors [N, d] of length one; a zero vector stays zero."""
    single = vectors.astype(np.float32)
    norms = np.sqrt(np.einsum("nd,nd->n", single, single, dtype=np.float64))
    scale = np.where(norms > 0.0, 1.0 / np.where(norms > 0.0, norms, 1.0), 0.0)
    scaled: Vectors = single * scale.astype(np.float32)[:, None]
    return scaled


def cosines(vectors: NDArray[np.floating], others: NDArray[np.floating]) -> Iterator[tuple[slice, Vectors]]:
    """Cosines [rows, M] of blocks of vectors [N, d] with all of the others [M, d], and which rows they are of.

    Rows that are not finite give NaN.
    """
    known = unit(others)
    columns = max(LEAST_COLUMNS, -(-len(known) // LEAST_COLUMNS) * LEAST_COLUMNS)
    right = np.zeros((columns, vectors.shape[1]), dtype=np.float32)
    right[: len(known)] = known
    padded = np.zeros((BLOCK, vectors.shape[1]), dtype=np.float32)
    for start in range(0, len(vectors), BLOCK):
        rows = slice(start, min(start + BLOCK, len(vectors)))
        count = rows.stop - start
        padded[:count] = unit(vectors[rows])
        padded[count:] = 0.0
        yield rows, (padded @ right.T)[:count, : len(known)]
