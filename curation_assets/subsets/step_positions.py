"""Mean and standard deviation of step scores by position, so that steps can be compared across positions.

GRACE's mean step score rises with the step's index, so that a colour by the score itself marks late steps as good.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from curation_assets import tables
from curation_assets.methods.method import ScoreSection
from curation_assets.methods.registry import method_of
from curation_assets.quality.filtered_pool import stored_pool
from curation_assets.subsets.moments import GROUP, VALUE, Moments, moments_by_group
from curation_assets.subsets.select import in_pieces
from curation_assets.workspace.workspace import Workspace, cache_folder
from curation_resources.storage.spill import spilling

LEAST_STEPS = 20
"""Positions with fewer steps are pooled with their neighbours."""


@dataclass(frozen=True)
class StepPositions:
    """Moments of step scores by position.

    Attributes:
        first: the lowest step_index of each group of positions, ascending; a group ends before the next one.
        moments: the moments of the scores of each group's steps.
    """

    first: Sequence[int]
    moments: Sequence[Moments]

    def z(self, step_index: int, score: float) -> float:
        """Return a score's distance from the mean of its position in standard deviations; 0 if none vary there."""
        return self.moments[max(0, bisect_right(self.first, step_index) - 1)].z(score)

    def of_steps(self, scores: pl.DataFrame) -> dict[int, float]:
        """Return z by step_index for rows of `step_scores` of one sample."""
        known = scores.filter(pl.col("step_score").is_finite())
        return {index: self.z(index, score) for index, score in known.select("step_index", "step_score").iter_rows()}

    def document(self) -> list[dict[str, float | int]]:
        """Return the moments as JSON; `of_document` is the inverse."""
        return [
            {"step_index": first, "steps": own.size, "mean": own.mean, "deviation": own.deviation}
            for first, own in zip(self.first, self.moments, strict=True)
        ]

    @classmethod
    def of_document(cls, document: Sequence[Mapping[str, Any]] | None) -> StepPositions | None:
        """Return stored moments; None if there are none."""
        if not document:
            return None
        rows = sorted(document, key=lambda row: row["step_index"])
        moments = [Moments(int(row["steps"]), float(row["mean"]), float(row["deviation"])) for row in rows]
        return cls([int(row["step_index"]) for row in rows], moments)


def step_positions(workspace: Workspace, score: ScoreSection) -> StepPositions | None:
    """Return the moments of a score's steps over the pool; None if no step is scored.

    The pool is that of the target's manifest, or all that is scored before there is one. Each sample counts once, and
    samples removed by the corpus' filters do not count.
    """
    if not method_of(score).scores_steps:
        return None
    scan = workspace.warehouse.scan(tables.step_scores_dir(score.target, score.name), _present(workspace, score.target))
    if scan is None:
        return None
    filtered = None
    if stored_pool(workspace) is not None:
        known = workspace.warehouse.scan_table(tables.pool_path())
        filtered = None if known is None else known.filter(pl.col("reason").is_not_null()).select("sample_id")
    return positions_of(in_pieces(scan), filtered, workspace.settings.engine.selection_memory_mib)


def _present(workspace: Workspace, target: str) -> list[str] | None:
    """Return the shards of the pool; None: all."""
    path = tables.score_manifest_path(target)
    if not workspace.warehouse.table_metadata(path):
        return None if workspace.only_shards is None else sorted(workspace.only_shards)
    shards = workspace.warehouse.read_table(path).filter("present")["shard"].to_list()
    return [shard for shard in shards if workspace.only_shards is None or shard in workspace.only_shards]


def positions_of(steps: Iterable[pl.DataFrame], filtered: pl.LazyFrame | None, memory_mib: int) -> StepPositions | None:
    """Return the moments of rows of `step_scores`, in pieces and in any order; None if no step is scored.

    Args:
        steps: the rows, including those of exact duplicates.
        filtered: sample_id of samples that do not count.
        memory_mib: memory limit; more rows than fit spill to disk.
    """
    with spilling(cache_folder() / "selection", memory_mib) as spill:
        spill.run("create table arrived (sample_id uuid, step_index integer, score double)")
        columns = "sample_id::uuid, step_index::integer, step_score::double"
        spill.load(f"insert into arrived select {columns} from frame where isfinite(step_score)", steps)
        spill.run("create table filtered (sample_id uuid)")
        if filtered is not None:
            spill.load("insert into filtered select sample_id::uuid from frame", in_pieces(filtered))
        # The last bits of a duplicate's score may differ between shards.
        spill.run(
            "create table steps as select step_index, min(score) as score from arrived "
            "anti join filtered using (sample_id) group by sample_id, step_index"
        )
        counts = spill.rows("select step_index, count(*) from steps group by step_index order by step_index")
        first = pooled(counts)
        if not first:
            return None
        spill.run("create table positions (step_index integer, first integer)")
        pairs = pl.DataFrame(
            [(index, first[bisect_right(first, index) - 1]) for index, _ in counts],
            schema=["step_index", "first"],
            orient="row",
        )
        spill.load("insert into positions select * from frame", [pairs])
        query = f'select first as "{GROUP}", score as "{VALUE}" from steps join positions using (step_index)'
        found = moments_by_group(lambda: spill.stream(query))
    moments = [found[index] for index in first]
    # Sums overflow only beyond all scores that mean anything.
    return StepPositions(first, moments) if all(math.isfinite(own.deviation) for own in moments) else None


def pooled(counts: Sequence[tuple[int, int]], least: int = LEAST_STEPS) -> list[int]:
    """Return the first step_index of each group of positions with at least `least` steps.

    Args:
        counts: step_index and number of steps, in the order of step_index.
        least: a position with fewer steps is pooled with those after it, and the last ones with those before.
    """
    first: list[int] = []
    steps = least
    for index, count in counts:
        if steps >= least:
            first.append(index)
            steps = 0
        steps += count
    if len(first) > 1 and steps < least:
        first.pop()
    return first
