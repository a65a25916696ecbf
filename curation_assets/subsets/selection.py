"""A selected subset: its rows as written, their digest, and the facts about the selection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import polars as pl

from curation_assets import tables
from curation_assets.subsets.summary import Summary
from curation_resources.storage.digests import RunningDigest, digest

PIECE_ROWS = 500_000
"""Rows of a subset to write, or hash, at a time."""


@dataclass(frozen=True)
class Selection:
    """The facts about a selection.

    Attributes:
        summary: summary of the pool and of the subset.
        content_digest: digest of the rows; equal for equal subsets.
        duplicates: rows of the corpus that are exact copies of a row in the pool.
        filtered: samples removed from the pool by the corpus' filters, by reason.
        left_out: eligible samples with a score that the selector takes under no budget, by reason.
        whole: whether the budget is larger than everything that could be chosen.
        held_out: samples of the pool whose prompt is in a validation set of the score; None without a set.
    """

    summary: Summary
    content_digest: str
    duplicates: int
    filtered: Mapping[str, int]
    left_out: Mapping[str, int]
    whole: bool
    held_out: int | None = None

    def document(self) -> dict[str, Any]:
        """Return everything as JSON; `of_document` is the inverse."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"summary": self.summary.document()}

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> Selection:
        """Return a stored selection."""
        return cls(**{**document, "summary": Summary.of_document(document["summary"])})

    def score_distribution(self) -> dict[str, float | None]:
        """Return mean and standard deviation of the pool's scores."""
        return {"mean": self.summary.mean, "std": self.summary.deviation}

    def facts(self) -> dict[str, float | int | None]:
        """Return counts, and the biases known of GRACE: corr(V, K) and corr(V, tokens)."""
        summary = self.summary
        return {
            "pool": summary.pool,
            "duplicates_left_out": self.duplicates,
            **{f"filtered_{reason}": count for reason, count in sorted(self.filtered.items())},
            "eligible": summary.eligible,
            "without_score": summary.eligible - summary.ranked,
            **({} if self.held_out is None else {"prompts_in_validation_sets": self.held_out}),
            "selected": summary.selected,
            "low_signal_selected": summary.low_signal,
            **{f"left_out_{reason}": count for reason, count in sorted(self.left_out.items())},
            "correlation_with_steps": summary.correlations["n_steps"],
            "correlation_with_tokens": summary.correlations["response_tokens"],
            "mean_score_selected": summary.mean_selected,
            "mean_score_pool": summary.mean_ranked,
        }


class SubsetDigest:
    """Digest of a table `subset` whose rows arrive in pieces, best first; independent of the pieces' sizes."""

    def __init__(self) -> None:
        self._rows = RunningDigest()

    def add(self, rows: pl.DataFrame) -> None:
        """Add the next rows."""
        self._rows.add(rows.write_ndjson().encode())

    def value(self) -> str:
        """Return the digest of all rows so far."""
        return digest("subset_rows", self._rows.value())


def subset_digest(rows: pl.DataFrame) -> str:
    """Return the digest of the rows of a table `subset`."""
    found = SubsetDigest()
    for piece in pieces(rows):
        found.add(piece)
    return found.value()


def pieces(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Split the rows of a subset into the pieces in which they are written."""
    return rows.iter_slices(PIECE_ROWS)


def subset_rows(chosen: pl.DataFrame, score: str, before: int = 0) -> pl.DataFrame:
    """Return rows of table `subset`.

    Args:
        chosen: `sample_id`, `score` and `low_signal` of samples in the order of choice.
        score: name of the score.
        before: number of samples chosen before these.
    """
    rank = pl.int_range(before + 1, before + pl.len() + 1, dtype=pl.Int64)
    flags = pl.when("low_signal").then(pl.lit("; low_signal")).otherwise(pl.lit(""))
    rows = chosen.with_columns(rank=rank, weight=pl.lit(1.0)).with_columns(
        # No pool sizes in the text: an unchanged subset must yield an identical release.
        reason=pl.format("rank {} by " + score + " = {}{}", "rank", pl.col("score").round(4), flags)
    )
    return tables.SUBSET.conform(rows.select(tables.SUBSET.columns.keys()))
