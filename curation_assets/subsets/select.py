"""Making a subset: the pool, who is eligible, the ranking, and what to tell about the choice."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from curation_assets import tables
from curation_assets.corpus.pool import resolve_duplicates
from curation_assets.fingerprints import input_fingerprint, shard_scores_fingerprint
from curation_assets.settings import Subset, Target
from curation_assets.signals.store import recorded_left_out, signal_dir
from curation_assets.subsets.budget import take_within
from curation_assets.workspace import Workspace
from resources.digests import digest
from resources.errors import UserError

SELECTION_VERSION = 1
LOW_SIGNAL_PERCENT = 1


class SelectionError(UserError):
    """A subset cannot be selected."""


@dataclass(frozen=True)
class Selection:
    """A subset with what stands behind it.

    Attributes:
        rows: table `subset`.
        pool: the pool with the score in column `score`, who was eligible and who was chosen.
        duplicates: rows of the corpus that are exact copies of one in the pool.
        fingerprint: of the parameters and the manifest that it was selected from.
        content_digest: of the rows: equal subsets, equal digest.
    """

    rows: pl.DataFrame
    pool: pl.DataFrame
    duplicates: int
    fingerprint: str
    content_digest: str

    def score_distribution(self) -> dict[str, float | None]:
        """Mean and standard deviation of the pool's scores."""
        scores = self.pool.filter(pl.col("score").is_finite())["score"]
        deviation = scores.std()
        return {"mean": _mean(scores), "std": float(deviation) if isinstance(deviation, float) else None}

    def facts(self) -> dict[str, float | int | None]:
        """Counts and the biases that GRACE is known for: corr(V, K) and corr(V, tokens)."""
        ranked = self.pool.filter(pl.col("eligible") & pl.col("score").is_not_null())
        return {
            "pool": len(self.pool),
            "duplicates_left_out": self.duplicates,
            "eligible": int(self.pool["eligible"].sum()),
            "without_score": int((self.pool["eligible"] & self.pool["score"].is_null()).sum()),
            "low_signal": int(self.pool["low_signal"].sum()),
            "selected": len(self.rows),
            "correlation_with_steps": _correlation(ranked, "n_steps"),
            "correlation_with_tokens": _correlation(ranked, "response_tokens"),
            "mean_score_selected": _mean(self.rows["score"]),
            "mean_score_pool": _mean(ranked["score"]),
        }


def parameters_digest(workspace: Workspace, subset: Subset) -> str:
    """What the choice depends on beside the scores: the code version of the subset's asset.

    What the scores themselves depend on (alpha, history) is in the manifest's fingerprint, so that a
    subset waits for its scores instead of being selected from the former ones.
    """
    eligibility = workspace.settings.score(subset.score).min_steps
    return digest("subset", SELECTION_VERSION, subset.model_dump(mode="json"), eligibility)


def wanted_fingerprint(workspace: Workspace, subset: Subset) -> str | None:
    """Of the subset as parameters and manifest want it now; None while there is no manifest."""
    target = workspace.settings.score(subset.score).target
    manifest = workspace.warehouse.table_metadata(tables.score_manifest_path(target)).get("fingerprint")
    return None if manifest is None else digest(parameters_digest(workspace, subset), manifest)


def select(workspace: Workspace, subset: Subset) -> Selection:
    """Select a subset from the stored scores; deterministic to the bit.

    Raises:
        SelectionError: the target has no manifest, or its shards' scores are of other parameters.
    """
    score = workspace.settings.score(subset.score)
    fingerprint = wanted_fingerprint(workspace, subset)
    if fingerprint is None:
        raise SelectionError(
            f"subset {subset.name}: target {score.target} has no scores yet: materialize "
            f"{score.target}/score_manifest, or use `curate run`"
        )
    manifest = workspace.warehouse.read_table(tables.score_manifest_path(score.target))
    shards = manifest.filter("present")["shard"].to_list()
    _check_scores(workspace, workspace.settings.target(score.target), manifest)
    scan = workspace.warehouse.scan(tables.sample_scores_dir(score.target), shards)
    scores = tables.SAMPLE_SCORES.empty() if scan is None else scan.collect()
    if scan is None:
        scores = scores.with_columns(pl.lit(None, dtype=pl.Float64).alias(score.name))
    pool, duplicates = resolve_duplicates(scores)
    pool = _mark(pool.rename({score.name: "score"}), score.min_steps)
    ranked = rank(pool)
    chosen = take_within(ranked, subset.budget, int(pool["eligible"].sum()))
    rows = _subset_rows(chosen, score.name)
    pool = pool.with_columns(selected=pl.col("sample_id").is_in(rows["sample_id"].to_list()))
    content = digest("subset_rows", rows.to_dicts())
    return Selection(rows, pool, duplicates, fingerprint, content)


def _check_scores(workspace: Workspace, target: Target, manifest: pl.DataFrame) -> None:
    """Refuse scores that are of other signals or parameters than the configuration names now."""
    stored = workspace.warehouse.folder_metadata(tables.sample_scores_dir(target.name))
    steps = workspace.warehouse.folder_metadata(tables.segmented_steps_dir())
    folder = signal_dir(workspace, target, "step_gradients")
    behind = []
    for shard, signal_fp in manifest.filter("present").select("shard", "signal_fingerprint").iter_rows():
        left_out = recorded_left_out(workspace, folder, shard)
        wanted = shard_scores_fingerprint(workspace, target, signal_fp, input_fingerprint(steps[shard]), left_out)
        if stored[shard]["fingerprint"] != wanted:
            behind.append(shard)
    if behind:
        raise SelectionError(
            f"the scores of {len(behind)} shards of target {target.name} are not of this configuration "
            f"({', '.join(behind[:3])}): materialize {target.name}/sample_scores, or use `curate run`"
        )


def write_subset(workspace: Workspace, subset: Subset) -> Selection:
    """Select the subset and write it as the current one."""
    selection = select(workspace, subset)
    metadata = {
        "fingerprint": selection.fingerprint,
        "content_digest": selection.content_digest,
        "rows": str(len(selection.rows)),
    }
    workspace.warehouse.write_table(tables.subset_path(subset.name), selection.rows, metadata)
    return selection


def rank(pool: pl.DataFrame) -> pl.DataFrame:
    """The eligible samples with a finite score, best first; ties are broken by sample_id."""
    return pool.filter(pl.col("eligible") & pl.col("score").is_finite()).sort(
        ["score", "sample_id"], descending=[True, False]
    )


def _mark(pool: pl.DataFrame, min_steps: int) -> pl.DataFrame:
    """Who is eligible, and whose answer has next to no gradient: the lowest percent, ties by sample_id."""
    norms = pool.filter(pl.col("answer_norm").is_not_null()).sort("answer_norm", "sample_id")
    lowest = norms["sample_id"].head(len(norms) * LOW_SIGNAL_PERCENT // 100).to_list()
    return pool.with_columns(eligible=pl.col("n_steps") >= min_steps, low_signal=pl.col("sample_id").is_in(lowest))


def _subset_rows(chosen: pl.DataFrame, score: str) -> pl.DataFrame:
    rank = pl.int_range(1, pl.len() + 1, dtype=pl.Int64)
    flags = pl.when("low_signal").then(pl.lit("; low_signal")).otherwise(pl.lit(""))
    rows = chosen.with_columns(rank=rank, weight=pl.lit(1.0)).with_columns(
        # Nothing of the pool's size: a subset that stays the same stays the same release.
        reason=pl.format("rank {} by " + score + " = {}{}", "rank", pl.col("score").round(4), flags)
    )
    return tables.SUBSET.conform(rows.select(tables.SUBSET.columns.keys()))


def _correlation(frame: pl.DataFrame, column: str) -> float | None:
    """Pearson's correlation of the score with a column; None where either does not vary."""
    if len(frame) < 2 or frame["score"].n_unique() < 2 or frame[column].n_unique() < 2:
        return None
    return float(frame.select(pl.corr("score", pl.col(column).cast(pl.Float64))).item())


def _mean(values: pl.Series) -> float | None:
    mean = values.mean()
    return float(mean) if isinstance(mean, float) else None
