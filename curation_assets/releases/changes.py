"""What is another thing in one release than in another: rows that came and went, ranks, scores, settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

Shown = tuple[str, object, object]
MOST_SETTINGS = 40


@dataclass(frozen=True)
class Changes:
    """Of a release against a former one.

    Attributes:
        rows_before: of the former.
        rows: of this one.
        added: rows that are new.
        removed: rows that are gone.
        kept: rows of both.
        moved: of these, with another rank among the kept ones.
        rescored: of these, with another value of the same score; None where the scores are not the same.
        mean_score_before: of the former's rows.
        mean_score: of this one's.
        mean_shift: mean over kept rows of score minus former score; None without any.
        largest_shift: the largest such difference, as an absolute value.
        rank_correlation: Spearman's, over kept rows; None where there are fewer than two.
    """

    rows_before: int
    rows: int
    added: int
    removed: int
    kept: int
    moved: int
    rescored: int | None
    mean_score_before: float | None
    mean_score: float | None
    mean_shift: float | None
    largest_shift: float | None
    rank_correlation: float | None

    def facts(self) -> dict[str, float | int | None]:
        """As a manifest holds it."""
        return asdict(self)


def changes_of(before: pl.DataFrame, after: pl.DataFrame, same_score: bool = True) -> Changes:
    """What changed from one release's rows (`sample_id`, `rank`, `score`) to another's.

    Numbers of other scores are not held against one another: then drift is not known.
    """
    columns = ("sample_id", "rank", "score")
    kept = after.select(columns).join(before.select(columns), on="sample_id", how="inner", suffix="_before")
    # Rows that came or went push others up and down: what counts is the order among those that stayed.
    ranks = kept.select(pl.col("rank").rank(), pl.col("rank_before").rank())
    moved = int((ranks["rank"] != ranks["rank_before"]).sum())
    shifts = (kept["score"] - kept["score_before"]).drop_nulls() if same_score else pl.Series([], dtype=pl.Float64)
    return Changes(
        rows_before=len(before),
        rows=len(after),
        added=len(after) - len(kept),
        removed=len(before) - len(kept),
        kept=len(kept),
        moved=moved,
        rescored=int((shifts != 0).sum()) if same_score else None,
        mean_score_before=_mean(before["score"]),
        mean_score=_mean(after["score"]),
        mean_shift=_mean(shifts),
        largest_shift=None if shifts.is_empty() else float(np.abs(shifts.to_numpy()).max()),
        rank_correlation=_correlation(ranks),
    )


def changes_text(changes: Mapping[str, Any]) -> str:
    """A line of the changes that a manifest holds."""
    line = (
        f"{changes['added']:,} rows added, {changes['removed']:,} removed, {changes['kept']:,} kept, of which "
        f"{changes['moved']:,} moved"
    )
    if changes["rescored"] is None:
        return f"{line}; chosen by another score, or other parameters of it"
    line += f" and {changes['rescored']:,} have another score"
    if changes["mean_shift"] is None or not changes["rescored"]:
        return line
    return f"{line} (mean shift {changes['mean_shift']:+.4f}, largest {changes['largest_shift']:.4f})"


def changed_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Shown]:
    """What two manifests say differently of how they were chosen: a name, the former value, this one's."""
    names = ("parameters", "checkpoints", "packages", "code")
    old, new = dict(_flat(before, names)), dict(_flat(after, names))
    different = [(name, old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys())]
    found: list[Shown] = [row for row in different if row[1] != row[2]]
    return found[:MOST_SETTINGS]


def _flat(manifest: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[tuple[str, object]]:
    def walk(name: str, value: object) -> Iterator[tuple[str, object]]:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield from walk(f"{name}.{key}", inner)
        else:
            yield name, value

    for name in names:
        yield from walk(name, manifest.get(name))


def _mean(values: pl.Series) -> float | None:
    found = values.mean()
    return float(found) if isinstance(found, float) else None


def _correlation(ranks: pl.DataFrame) -> float | None:
    if len(ranks) < 2:
        return None
    return float(ranks.select(pl.corr("rank", "rank_before")).item())
