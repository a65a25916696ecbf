"""Compare subsets and scores: overlaps, rank correlations, length biases, and composition by source."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations_with_replacement

import polars as pl

from curation_assets import tables
from curation_assets.methods.random_draws import uniform
from curation_assets.subsets.manifest import LENGTHS, scored_pool
from curation_assets.subsets.select import wanted_fingerprint
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.digests import digest

COMPARISON_VERSION = 2
POOL = "(pool)"

Row = tuple[str, str, str, float | None, int]


def wanted_comparison(workspace: Workspace) -> str:
    """Return the fingerprint that the comparison should have, given the stored subsets and scores."""
    subsets = [(subset.name, wanted_fingerprint(workspace, subset)) for subset in workspace.settings.subsets]
    scores = [score.name for score in workspace.settings.scores]
    manifests = [
        workspace.warehouse.table_metadata(tables.score_manifest_path(target.name)).get("fingerprint")
        for target in workspace.settings.targets
    ]
    return digest("subset_comparison", COMPARISON_VERSION, subsets, scores, manifests)


def write_comparison(workspace: Workspace) -> pl.DataFrame:
    """Compare all subsets and scores, and write table `subset_comparison`."""
    fingerprint = wanted_comparison(workspace)
    frame = compare(workspace)
    workspace.warehouse.write_table(tables.subset_comparison_path(), frame, {"fingerprint": fingerprint})
    return frame


def compare(workspace: Workspace) -> pl.DataFrame:
    """Compute table `subset_comparison` from the stored tables."""
    pool = scored_pool(workspace)
    chosen = _chosen(workspace)
    made = [*_overlaps(chosen), *_baselines(pool, chosen), *_correlations(workspace, pool), *_composition(pool, chosen)]
    frame = pl.DataFrame(made, schema=tables.SUBSET_COMPARISON.schema, orient="row")
    return tables.SUBSET_COMPARISON.conform(frame)


def _chosen(workspace: Workspace) -> dict[str, set[str]]:
    """Return the sample_ids of every stored subset."""
    found = {}
    for subset in workspace.settings.subsets:
        scan = workspace.warehouse.scan_table(tables.subset_path(subset.name))
        if scan is not None:
            found[subset.name] = set(scan.select("sample_id").collect()["sample_id"].to_list())
    return found


def _overlaps(chosen: dict[str, set[str]]) -> Iterator[Row]:
    for left, right in combinations_with_replacement(sorted(chosen), 2):
        yield "overlap", left, right, _jaccard(chosen[left], chosen[right]), len(chosen[left] & chosen[right])


def _baselines(pool: pl.DataFrame, chosen: dict[str, set[str]]) -> Iterator[Row]:
    """Compare each subset with as many random samples, and with as many of the longest."""
    drawn = pool.with_columns(draw=uniform(pool["sample_id"], 0)).sort("draw", "sample_id")["sample_id"]
    longest = pool.sort("response_tokens", "sample_id", descending=[True, False], nulls_last=True)["sample_id"]
    for name, mine in chosen.items():
        for baseline, order in (("random", drawn), ("longest", longest)):
            other = set(order.head(len(mine)).to_list())
            yield "baseline", name, baseline, _jaccard(mine, other), len(mine & other)


def _correlations(workspace: Workspace, pool: pl.DataFrame) -> Iterator[Row]:
    scores = [score.name for score in workspace.settings.scores if score.name in pool.columns]
    for number, left in enumerate(scores):
        for right in [*scores[number:], *LENGTHS]:
            both = pool.filter(pl.col(left).is_finite() & pl.col(right).cast(pl.Float64).is_finite())
            yield "rank_correlation", left, right, spearman(both, left, right), len(both)


def _composition(pool: pl.DataFrame, chosen: dict[str, set[str]]) -> Iterator[Row]:
    whole = set(pool["sample_id"].to_list())
    for name, mine in {POOL: whole, **chosen}.items():
        rows = pool.filter(pl.col("sample_id").is_in(mine))
        for source, count in rows.group_by("source").len().sort("source").iter_rows():
            yield "composition", name, source, count / len(rows), count


def _jaccard(left: set[str], right: set[str]) -> float | None:
    union = len(left | right)
    return len(left & right) / union if union else None


def spearman(frame: pl.DataFrame, left: str, right: str) -> float | None:
    """Return Spearman's rank correlation; None if either column is constant."""
    if len(frame) < 2 or frame[left].n_unique() < 2 or frame[right].n_unique() < 2:
        return None
    return float(frame.select(pl.corr(pl.col(left), pl.col(right).cast(pl.Float64), method="spearman")).item())


def matrix(frame: pl.DataFrame, comparison: str) -> tuple[list[list[float | None]], list[str], list[str]]:
    """Return one comparison of the table as a matrix: values by row and column, and their names.

    Overlaps and correlations are symmetric and both halves are filled; baselines are not symmetric.
    """
    rows = frame.filter(pl.col("comparison") == comparison)
    cells = {(left, right): value for left, right, value in rows.select("left", "right", "value").iter_rows()}
    lefts, rights = (rows[name].unique(maintain_order=True).to_list() for name in ("left", "right"))
    if comparison == "baseline":
        return [[cells.get((left, right)) for right in rights] for left in lefts], lefts, rights
    rights = [*lefts, *(name for name in rights if name not in lefts)]
    values = [[cells.get((left, right), cells.get((right, left))) for right in rights] for left in lefts]
    return values, lefts, rights
