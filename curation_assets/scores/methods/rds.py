"""Similarity to validation samples: RDS and RDS+ (arXiv 2503.01807), by hidden states of the target model."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from curation_assets.scores.method import Method, Scored, ScoreInputs, ScoreSection
from curation_assets.sections import Name, SignalName
from curation_assets.subsets.selector import RoundRobin, Top
from curation_assets.subsets.vectors import cosines

SOURCE = "arXiv 2503.01807"


class SimilarityScore(ScoreSection):
    """Similarity to validation samples: cosine of the sample's embedding with each of them, the largest or the mean."""

    validation: Name = Field(description="the validation set that the pool is compared with")
    reduce: Literal["max", "mean"] = Field("max", description="over the validation samples")


class RdsScore(SimilarityScore):
    """RDS: by the last token's last hidden state."""

    method: Literal["rds"] = "rds"


class RdsPlusScore(SimilarityScore):
    """RDS+: by the position-weighted mean of the last hidden states, w_t = t / sum t."""

    method: Literal["rds_plus"] = "rds_plus"


def similarity(inputs: ScoreInputs, section: SimilarityScore, signal: SignalName) -> Scored:
    """The score of every sample with an embedding."""
    rows = inputs.signals[signal].filter(pl.col("vector").is_not_null())
    found = np.empty(len(rows))
    if len(rows):
        vectors = rows["vector"].explode().to_numpy().reshape(len(rows), -1)
        for places, block in cosines(vectors, inputs.validation[section.validation]):
            if section.reduce == "max":
                found[places] = block.max(axis=1)
            else:
                # One column after another: the same sum whatever rows stand beside a row.
                total = np.zeros(len(block))
                for column in block.T:
                    total += column
                found[places] = total / block.shape[1]
    return Scored(rows.select("sample_id", value=pl.Series(found, dtype=pl.Float64)))


METHODS = [
    Method(
        name="rds",
        source=SOURCE,
        summary="cosine with validation samples, by the last token's hidden state",
        section=RdsScore,
        signals=lambda _section: ("embeddings_last",),
        reads={"embeddings_last": ("vector",)},
        score=lambda inputs, section: similarity(inputs, section, "embeddings_last"),
        selector=Top(),
        validation=lambda section: (section.validation,),
        vectors="embeddings_last",
    ),
    Method(
        name="rds_plus",
        source=SOURCE,
        summary="cosine with validation samples, by the position-weighted mean of hidden states",
        section=RdsPlusScore,
        signals=lambda _section: ("embeddings_position_weighted",),
        reads={"embeddings_position_weighted": ("vector",)},
        score=lambda inputs, section: similarity(inputs, section, "embeddings_position_weighted"),
        selector=RoundRobin(),
        validation=lambda section: (section.validation,),
        vectors="embeddings_position_weighted",
    ),
]
