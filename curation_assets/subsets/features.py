"""Embeddings of the pool and of validation samples, for selectors that need more than scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

Vectors = NDArray[np.floating]


@dataclass(frozen=True)
class Features:
    """Data that a selector may request beside scores; loaded on request.

    Attributes:
        vectors: returns embeddings [n, d] of samples by id, in order; every sample has one.
        validation: returns embeddings [M, d] of the validation samples, in the order of their turns; None if the method
            compares with none.
        prompts: returns prompt_ids of the validation samples; None in the same case.
    """

    vectors: Callable[[pl.Series], Vectors]
    validation: Callable[[], Vectors] | None = None
    prompts: Callable[[], list[str]] | None = None
