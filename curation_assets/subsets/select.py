"""Making a subset: the pool, who is eligible, the ranking, and what to tell about the choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curation_assets import tables
from curation_assets.corpus.pool import Pool, resolve_duplicates
from curation_assets.fingerprints import input_fingerprint, shard_scores_fingerprint
from curation_assets.quality.filtered_pool import stored_pool, without_filtered
from curation_assets.scores.method import ScoreSection
from curation_assets.scores.registry import method_of
from curation_assets.settings import Filters, Subset, Target
from curation_assets.signals.store import SignalStore, recorded_left_out, signal_dir
from curation_assets.subsets.budget import most_samples, strata, take_within
from curation_assets.subsets.features import Features
from curation_assets.subsets.selector import AnySelector
from curation_assets.subsets.selectors import BY_VECTORS, Candidates, ascending, order_by, order_by_stratum
from curation_assets.validation.measure import validation_key, validation_vectors
from curation_assets.workspace import Workspace
from resources.digests import bytes_digest, digest
from resources.errors import UserError

SELECTION_VERSION = 3
LOW_SIGNAL_PERCENT = 1

POOL_COLUMNS = [name for name in tables.SAMPLE_SCORES.columns if name != "flags"]
"""What choosing looks at, beside the score."""


class SelectionError(UserError):
    """A subset cannot be selected."""


@dataclass(frozen=True)
class Selection:
    """A subset with what stands behind it.

    Attributes:
        rows: table `subset`.
        pool: the pool with the score in column `score`, who was eligible and who was chosen.
        duplicates: rows of the corpus that are exact copies of one in the pool.
        filtered: samples that the corpus' filters leave out of the pool, by reason.
        left_out: eligible samples with a score that the selector takes under no budget, by reason.
        whole: whether the budget is larger than all that could be chosen.
        held_out: samples of the pool whose prompt a validation set of the score holds; None without a set.
    """

    rows: pl.DataFrame
    pool: pl.DataFrame
    duplicates: int
    filtered: dict[str, int]
    left_out: dict[str, int]
    whole: bool
    held_out: int | None = None

    @cached_property
    def content_digest(self) -> str:
        """Of the rows: equal subsets, equal digest."""
        return subset_digest(self.rows)

    def score_distribution(self) -> dict[str, float | None]:
        """Mean and standard deviation of the pool's scores."""
        scores = self.pool.filter(pl.col("score").is_finite())["score"]
        deviation = scores.std()
        return {"mean": _mean(scores), "std": float(deviation) if isinstance(deviation, float) else None}

    def facts(self) -> dict[str, float | int | None]:
        """Counts and the biases that GRACE is known for: corr(V, K) and corr(V, tokens)."""
        ranked = self.pool.filter(pl.col("eligible") & pl.col("score").is_finite())
        return {
            "pool": len(self.pool),
            "duplicates_left_out": self.duplicates,
            **{f"filtered_{reason}": count for reason, count in self.filtered.items()},
            "eligible": int(self.pool["eligible"].sum()),
            "without_score": int(self.pool["eligible"].sum()) - len(ranked),
            **({} if self.held_out is None else {"prompts_in_validation_sets": self.held_out}),
            "selected": len(self.rows),
            "low_signal_selected": int((self.pool["low_signal"] & self.pool["selected"]).sum()),
            **{f"left_out_{reason}": count for reason, count in self.left_out.items()},
            "correlation_with_steps": _correlation(ranked, "n_steps"),
            "correlation_with_tokens": _correlation(ranked, "response_tokens"),
            "mean_score_selected": _mean(self.rows["score"]),
            "mean_score_pool": _mean(ranked["score"]),
        }


def subset_digest(rows: pl.DataFrame) -> str:
    """Of the rows of a table `subset`."""
    return digest("subset_rows", bytes_digest(rows.write_ndjson().encode()))


def parameters_digest(workspace: Workspace, subset: Subset) -> str:
    """What the choice depends on beside the scores: the code version of the subset's asset.

    What the scores themselves depend on (alpha, history) is in the manifest's fingerprint, so that a
    subset waits for its scores instead of being selected from the former ones.
    """
    eligibility = workspace.settings.score(subset.score).min_steps
    selector = selector_of(workspace, subset).model_dump(mode="json")
    return digest("subset", SELECTION_VERSION, subset.model_dump(mode="json"), selector, eligibility)


def selector_of(workspace: Workspace, subset: Subset) -> AnySelector:
    """The selector that a subset names, else its method's."""
    return subset.selector or method_of(workspace.settings.score(subset.score)).selector


def wanted_fingerprint(workspace: Workspace, subset: Subset) -> str | None:
    """Of the subset as parameters, manifest and filters want it now; None while one of these is not there."""
    target = workspace.settings.score(subset.score).target
    manifest = workspace.warehouse.table_metadata(tables.score_manifest_path(target)).get("fingerprint")
    if manifest is None or (workspace.settings.corpus.filters.any and stored_pool(workspace) is None):
        return None
    return digest(parameters_digest(workspace, subset), manifest, stored_pool(workspace))


def select(workspace: Workspace, subset: Subset) -> Selection:
    """Select a subset from the stored scores; deterministic to the bit.

    Raises:
        SelectionError: the target has no manifest, or its shards' scores are of other parameters.
    """
    score = workspace.settings.score(subset.score)
    manifest = current_manifest(workspace, workspace.settings.target(score.target))
    shards = manifest.filter("present")["shard"].to_list()
    if workspace.only_shards is not None:
        shards = [shard for shard in shards if shard in workspace.only_shards]
    scan = workspace.warehouse.scan(tables.sample_scores_dir(score.target), shards)
    if scan is None:
        scan = tables.SAMPLE_SCORES.empty().lazy().with_columns(pl.lit(None, dtype=pl.Float64).alias(score.name))
    pool, filtered = filtered_pool(workspace, resolve_duplicates(scan.select(*POOL_COLUMNS, score=score.name)))
    return choose(pool, score, selector_of(workspace, subset), subset, features_of(workspace, score), filtered)


def filtered_pool(workspace: Workspace, pool: Pool) -> tuple[Pool, dict[str, int]]:
    """The pool without what the corpus' filters leave out, and how many that are, by reason."""
    rows, filtered = without_filtered(workspace, pool.rows)
    return Pool(rows, pool.duplicates), filtered


def features_of(workspace: Workspace, score: ScoreSection) -> Features | None:
    """The embeddings that a score's method brings, None if it brings none."""
    signal = method_of(score).vectors
    if signal is None:
        return None
    target = workspace.settings.target(score.target)

    def vectors(sample_ids: pl.Series) -> NDArray[np.float32]:
        stored = SignalStore.of(workspace, target, signal).rows(sample_ids)
        assert stored is not None
        wanted = sample_ids.to_frame("sample_id").join(stored, on="sample_id", how="left", maintain_order="left")
        return method_of(score).to_vectors(wanted)

    def validation() -> NDArray[np.float32]:
        return np.concatenate(list(validation_vectors(workspace, target, score).values()))

    def prompts() -> list[str]:
        sets = [
            workspace.warehouse.scan_table(tables.validation_path(name)) for name in method_of(score).validation(score)
        ]
        found = [scan.select("prompt_id").unique().collect()["prompt_id"] for scan in sets if scan is not None]
        return pl.concat(found).unique().to_list()

    if not method_of(score).validation(score):
        return Features(vectors)
    # Several strata go round the same samples.
    return Features(vectors, cache(validation), prompts)


def choose(
    scored: Pool,
    score: ScoreSection,
    selector: AnySelector,
    subset: Subset,
    features: Features | None = None,
    filtered: Mapping[str, int] | None = None,
) -> Selection:
    """Choose a subset of scored samples.

    Args:
        scored: rows of `sample_scores` (POOL_COLUMNS), each sample once, with the score in column `score`.
        score: what the score is.
        selector: how it is chosen.
        subset: filters, strata, budget.
        features: embeddings, for selectors that look at them.
        filtered: samples that are not in the pool because of the corpus' filters, by reason.
    """
    pool = scored.rows
    passing = pool.select((pl.col("n_steps") >= score.min_steps) & passes(subset.filters)).to_series()
    eligible = passing.fill_null(value=False).to_numpy()
    values = pool["score"].fill_null(float("nan")).to_numpy()
    by_vectors = isinstance(selector, BY_VECTORS)
    limit = most_samples(subset.budget, pool, eligible) if by_vectors or not subset.stratify else None
    may, highest_first = eligible & np.isfinite(values), method_of(score).highest_first
    found = Candidates(pool, values, may, highest_first, limit, features, int(eligible.sum()))
    if by_vectors and subset.stratify:
        choice = order_by_stratum(selector, found, strata(pool, eligible, subset.stratify))
    else:
        choice = order_by(selector, found)
    taken = take_within(choice.order, subset.budget, pool, eligible, subset.stratify)
    selected = np.zeros(len(pool), dtype=np.bool_)
    selected[taken.positions] = True
    marks = {"eligible": eligible, "low_signal": _low_signal(pool), "selected": selected}
    pool = pool.with_columns(pl.Series(name, mark) for name, mark in marks.items())
    rows = _subset_rows(pool[taken.positions], score.name)
    held_out = (
        None if features is None or features.prompts is None else int(pool["prompt_id"].is_in(features.prompts()).sum())
    )
    return Selection(rows, pool, scored.duplicates, dict(filtered or {}), choice.left_out, taken.whole, held_out)


def current_manifest(workspace: Workspace, target: Target) -> pl.DataFrame:
    """A target's manifest of scores.

    Raises:
        SelectionError: there is none, or the scores are of other signals or parameters than the configuration's.
    """
    path = tables.score_manifest_path(target.name)
    if not workspace.warehouse.table_metadata(path):
        raise SelectionError(
            f"target {target.name} has no scores yet: materialize {target.name}/score_manifest, or use `curate run`"
        )
    manifest = workspace.warehouse.read_table(path)
    stored = workspace.warehouse.folder_metadata(tables.sample_scores_dir(target.name))
    steps = workspace.warehouse.folder_metadata(tables.segmented_steps_dir())
    folders = [signal_dir(workspace, target, signal) for signal in workspace.settings.signals_of_scores(target)]
    validation = validation_key(workspace, target)
    behind = []
    for shard, signals_fp in manifest.filter("present").select("shard", "signal_fingerprint").iter_rows():
        left_out = [recorded_left_out(workspace, folder, shard) for folder in folders]
        steps_fp = input_fingerprint(steps[shard])
        wanted = shard_scores_fingerprint(workspace, target, signals_fp, steps_fp, left_out, validation)
        if stored[shard]["fingerprint"] != wanted:
            behind.append(shard)
    if behind:
        raise SelectionError(
            f"the scores of {len(behind)} shards of target {target.name} are not of this configuration "
            f"({', '.join(behind[:3])}): materialize {target.name}/sample_scores, or use `curate run`"
        )
    return manifest


def write_subset(workspace: Workspace, subset: Subset) -> Selection:
    """Select the subset and write it as the current one."""
    # Before the scores are read: if they change meanwhile, the subset is due again.
    fingerprint = str(wanted_fingerprint(workspace, subset))
    selection = select(workspace, subset)
    metadata = {
        "fingerprint": fingerprint,
        "content_digest": selection.content_digest,
        "rows": str(len(selection.rows)),
        "whole": str(selection.whole),
    }
    workspace.warehouse.write_table(tables.subset_path(subset.name), selection.rows, metadata)
    return selection


def passes(filters: Filters) -> pl.Expr:
    """Which rows of the pool pass a subset's filters."""
    conditions: list[pl.Expr] = [pl.lit(value=True)]
    for column, wanted in (("source", filters.sources), ("generator", filters.generators)):
        if wanted is not None:
            conditions.append(pl.col(column).is_in(wanted).fill_null(value=False))
    if filters.exclude_generators is not None:
        conditions.append(~pl.col("generator").is_in(filters.exclude_generators).fill_null(value=False))
    if filters.correct is not None:
        said = pl.coalesce("correct", "verified")
        conditions.append((said == filters.correct).fill_null(value=False))
    for column, least, most in (
        ("response_tokens", filters.min_tokens, filters.max_tokens),
        ("n_steps", filters.min_steps, filters.max_steps),
    ):
        if least is not None:
            conditions.append(pl.col(column) >= least)
        if most is not None:
            conditions.append(pl.col(column) <= most)
    return pl.all_horizontal(conditions)


def _low_signal(pool: pl.DataFrame) -> NDArray[np.bool_]:
    """Whose answer has next to no gradient [N]: the lowest percent, ties by sample_id."""
    norms = pool["answer_norm"].fill_null(float("nan")).to_numpy().astype(np.float64)
    places = np.flatnonzero(~np.isnan(norms))
    count = len(places) * LOW_SIGNAL_PERCENT // 100
    low = np.zeros(len(pool), dtype=np.bool_)
    low[places[ascending(norms[places], pool["sample_id"], places, count)[:count]]] = True
    return low


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
