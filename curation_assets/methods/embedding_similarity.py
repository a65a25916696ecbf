"""Similarity to validation samples with any embedding model, as with NV-Embed (a baseline of arXiv 2503.01807)."""

from __future__ import annotations

from typing import Literal

from curation_assets.methods.rds import SOURCE, SimilarityScore, similarity_method
from curation_assets.methods.selectors.round_robin import RoundRobin


class EmbeddingSimilarityScore(SimilarityScore):
    """Embedding similarity: cosine with validation samples, computed with an embedding model of your choice."""

    method: Literal["embedding_similarity"] = "embedding_similarity"


METHODS = [
    similarity_method(
        "embedding_similarity",
        f"{SOURCE}: the NV-Embed baseline, with any sentence-transformers model",
        "cosine with validation samples, by an embedding model",
        EmbeddingSimilarityScore,
        "text_embeddings",
        RoundRobin(),
    )
]
