"""Similarity to validation samples by any embedding model: NV-Embed style (a baseline of arXiv 2503.01807)."""

from __future__ import annotations

from typing import Literal

from curation_assets.scores.method import Method
from curation_assets.scores.methods.rds import SOURCE, SimilarityScore, similarity
from curation_assets.subsets.selector import RoundRobin


class EmbeddingSimilarityScore(SimilarityScore):
    """Embedding similarity: cosine with validation samples by an embedding model of one's choice."""

    method: Literal["embedding_similarity"] = "embedding_similarity"


METHODS = [
    Method(
        name="embedding_similarity",
        source=f"{SOURCE}: the NV-Embed baseline, with any sentence-transformers model",
        summary="cosine with validation samples, by an embedding model",
        section=EmbeddingSimilarityScore,
        signals=lambda _section: ("text_embeddings",),
        reads={"text_embeddings": ("vector",)},
        score=lambda inputs, section: similarity(inputs, section, "text_embeddings"),
        selector=RoundRobin(),
        validation=lambda section: (section.validation,),
        vectors="text_embeddings",
        cost="N F_embedding",
    )
]
