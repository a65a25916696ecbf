"""Compare two releases: rows added and removed, ranks, scores and settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

Shown = tuple[str, object, object]
MOST_SETTINGS = 40


@dataclass(frozen=True)
class Changes:
    """Changes from an earlier release to a later one.

    Attributes:
        rows_before: rows of the earlier release.
        rows: rows of the later release.
        added: rows only in the later release.
        removed: rows only in the earlier release.
        kept: rows of both.
        moved: kept rows whose rank among the kept rows differs.
        rescored: kept rows with another value of the same score; None if the scores differ.
        mean_score_before: mean score of the earlier release.
        mean_score: mean score of the later release.
        mean_shift: mean change of the score over kept rows; None without any.
        largest_shift: largest absolute change of the score.
        rank_correlation: Spearman's, over kept rows; None if there are fewer than two.
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
        """Return the changes as stored in a manifest."""
        return asdict(self)


def funnels(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, int | None, int | None]]:
    """Return how many samples each stage of the selection left, for the manifests of two releases.

    Stages of the same name stand side by side, in the order of the later release; a stage that only one of them has is
    None in the other. Empty if neither release records its stages.
    """
    left, right = (_stages(manifest.get("funnel", [])) for manifest in (before, after))
    return [(name, left.get(name), right.get(name)) for name in dict.fromkeys([*right, *left])]


def _stages(funnel: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return samples by stage; a second stage of the same name gets a number."""
    found: dict[str, int] = {}
    for stage in funnel:
        name = title = f"{stage['subset']}: {stage['name']}"
        number = 1
        while title in found:
            number += 1
            title = f"{name} ({number})"
        found[title] = int(stage["samples"])
    return found


def changes_of(before: pl.DataFrame, after: pl.DataFrame, same_score: bool = True) -> Changes:
    """Compare the rows (`sample_id`, `rank`, `score`) of two releases.

    Values of different scores are not compared; the drift is then unknown.
    """
    columns = ("sample_id", "rank", "score")
    kept = after.select(columns).join(before.select(columns), on="sample_id", how="inner", suffix="_before")
    # Added and removed rows shift the ranks of others, so only the order among kept rows counts.
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
    """Return the changes stored in a manifest as one line."""
    line = (
        f"{changes['added']:,} rows added, {changes['removed']:,} removed, {changes['kept']:,} kept, of which "
        f"{changes['moved']:,} moved"
    )
    if changes["rescored"] is None:
        return f"{line}; selected by another score, or by the same one with other parameters"
    line += f" and {changes['rescored']:,} have another score"
    if changes["mean_shift"] is None or not changes["rescored"]:
        return line
    return f"{line} (mean shift {changes['mean_shift']:+.4f}, largest {changes['largest_shift']:.4f})"


def changed_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Shown]:
    """Return the settings in which two manifests differ: name, earlier value, later value."""
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
