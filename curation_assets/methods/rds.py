"""Similarity to validation samples with the target model's hidden states: RDS and RDS+ (arXiv 2503.01807)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, field_validator

from curation_assets.methods.method import Method, Scored, ScoreInputs, ScoreSection
from curation_assets.methods.selectors.candidates import SelectorSection
from curation_assets.methods.selectors.round_robin import RoundRobin
from curation_assets.methods.selectors.tasks import AGGREGATION, Aggregate, selector_for
from curation_assets.methods.selectors.top import Top
from curation_assets.methods.vectors import cosines, matrix
from curation_assets.tables.signals import SignalName
from curation_resources.sections import Name

SOURCE = "arXiv 2503.01807"


class SimilarityScore(ScoreSection):
    """Similarity to validation samples: maximum or mean cosine of the sample's embedding with theirs."""

    validation: list[Name] = Field(min_length=1, description="validation sets, one per task; a name or a list")
    reduce: Literal["max", "mean"] = Field("max", description="aggregation over the samples of a set")
    aggregate: Aggregate = Field("max", description=AGGREGATION)

    @field_validator("validation", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


class RdsScore(SimilarityScore):
    """RDS: embeds a sample as the last hidden state of its last token."""

    method: Literal["rds"] = "rds"


class RdsPlusScore(SimilarityScore):
    """RDS+: embeds a sample as the position-weighted mean of the last hidden states, w_t = t / sum t."""

    method: Literal["rds_plus"] = "rds_plus"


def similarity(inputs: ScoreInputs, section: SimilarityScore, signal: SignalName) -> Scored:
    """Return the score of every sample with an embedding."""
    rows = inputs.signals[signal].filter(pl.col("vector").is_not_null())
    vectors = matrix(rows["vector"])
    tasks = np.empty((len(rows), len(section.validation)))
    for task, name in enumerate(section.validation):
        for places, block in cosines(vectors, inputs.validation[name]):
            tasks[places, task] = block.max(axis=1) if section.reduce == "max" else _row_means(block)
    found = tasks.max(axis=1) if section.aggregate == "max" else _row_means(tasks)
    return Scored(rows.select("sample_id", value=pl.Series(found, dtype=pl.Float64)))


def _row_means(block: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the mean of each row, one column at a time, so that a sum does not depend on the other rows."""
    total = np.zeros(len(block), dtype=np.float64)
    for column in block.T:
        total += column
    total /= block.shape[1]
    return total


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
        validation=lambda section: tuple(section.validation),
        vectors=signal,
        selector_by=lambda section: selector_for(section.aggregate),
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
