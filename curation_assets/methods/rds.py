"""Similarity to validation samples with the target model's hidden states: RDS and RDS+ (arXiv 2503.01807)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection
from curation_assets.methods.selectors.candidates import SelectorSection
from curation_assets.methods.selectors.round_robin import RoundRobin
from curation_assets.methods.selectors.top import Top
from curation_assets.methods.vectors import cosines, matrix
from curation_assets.tables.signals import SignalName
from curation_resources.sections import Name

SOURCE = "arXiv 2503.01807"


class SimilarityScore(ScoreSection):
    """Similarity to validation samples: maximum or mean cosine of the sample's embedding with theirs."""

    validation: Name = Field(description="validation set to compare the pool with")
    reduce: Literal["max", "mean"] = Field("max", description="aggregation over the validation samples")


class RdsScore(SimilarityScore):
    """RDS: embeds a sample as the last hidden state of its last token."""

    method: Literal["rds"] = "rds"


class RdsPlusScore(SimilarityScore):
    """RDS+: embeds a sample as the position-weighted mean of the last hidden states, w_t = t / sum t."""

    method: Literal["rds_plus"] = "rds_plus"


def similarity(inputs: ScoreInputs, section: SimilarityScore, signal: SignalName) -> Scored:
    """Return the score of every sample with an embedding."""
    rows = inputs.signals[signal].filter(pl.col("vector").is_not_null())
    found = np.empty(len(rows))
    for places, block in cosines(matrix(rows["vector"]), inputs.validation[section.validation]):
        if section.reduce == "max":
            found[places] = block.max(axis=1)
        else:
            # One column at a time, so that the sum does not depend on the other rows.
            total = np.zeros(len(block))
            for column in block.T:
                total += column
            found[places] = total / block.shape[1]
    return Scored(rows.select("sample_id", value=pl.Series(found, dtype=pl.Float64)))


def similarity_method(
    name: str, source: str, summary: str, section: type[SimilarityScore], signal: SignalName, selector: SelectorSection
) -> Method:
    """Return a method whose score is the similarity of one signal's embeddings to validation samples."""
    return Method(
        name=name,
        source=source,
        summary=summary,
        section=section,
        signals=lambda _section: (signal,),
        reads={signal: ("vector",)},
        score=lambda inputs, section: similarity(inputs, section, signal),
        selector=selector,
        validation=lambda section: (section.validation,),
        vectors=signal,
        cost="N F_embedding" if signal == "text_embeddings" else "N F",
    )


METHODS = [
    similarity_method(
        "rds",
        SOURCE,
        "cosine with validation samples, by the last token's hidden state",
        RdsScore,
        "embeddings_last",
        Top(),
    ),
    similarity_method(
        "rds_plus",
        SOURCE,
        "cosine with validation samples, by the position-weighted mean of hidden states",
        RdsPlusScore,
        "embeddings_position_weighted",
        RoundRobin(),
    ),
]
