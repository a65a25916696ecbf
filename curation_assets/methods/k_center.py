"""K-center greedy: samples that cover the embedding space (core-sets, arXiv 1708.00489)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection
from curation_assets.methods.selectors.k_center import KCenter
from curation_assets.methods.vectors import matrix


class KCenterScore(ScoreSection):
    """K-center greedy: the score is only the embedding's norm; the selector uses distances to selected samples."""

    method: Literal["k_center"] = "k_center"


def _score(inputs: ScoreInputs, _section: KCenterScore) -> Scored:
    rows = inputs.signals["embeddings_mean"].filter(pl.col("vector").is_not_null())
    vectors = matrix(rows["vector"]).astype(np.float64)
    return Scored(rows.select("sample_id", value=pl.Series(np.sqrt(np.einsum("nd,nd->n", vectors, vectors)))))


METHODS = [
    Method(
        name="k_center",
        source="arXiv 1708.00489; masked mean of the last layer after its norm, Euclidean distance",
        summary="norm of the mean embedding; selected by distance to the samples already selected",
        section=KCenterScore,
        signals=lambda _section: ("embeddings_mean",),
        reads={"embeddings_mean": ("vector",)},
        score=_score,
        selector=KCenter(),
        vectors="embeddings_mean",
    )
]
