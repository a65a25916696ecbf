"""Embeddings of the pool and of validation samples, for selectors that look at more than scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

Vectors = NDArray[np.floating]


@dataclass(frozen=True)
class Features:
    """What a selector may ask for beside scores; read when it is asked for.

    Attributes:
        vectors: embeddings [n, d] of samples by their ids, in their order; each has one.
        validation: embeddings [M, d] of the validation samples, in the order of their turns; None if the method
            compares with none.
        prompts: prompt_ids of the validation samples; None likewise.
    """

    vectors: Callable[[pl.Series], Vectors]
    validation: Callable[[], Vectors] | None = None
    prompts: Callable[[], list[str]] | None = None
