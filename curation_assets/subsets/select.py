"""Select a subset: load the pool, filter and rank it in memory or on disk (`out_of_core`), and write the result."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curation_assets import tables
from curation_assets.config.settings import Subset, Target
from curation_assets.corpus.pool import Pool, resolve_duplicates
from curation_assets.methods.method import ScoreSection
from curation_assets.methods.registry import method_of
from curation_assets.methods.selectors.candidates import Candidates, Features, SelectorSection
from curation_assets.methods.selectors.registry import order_by, order_by_stratum
from curation_assets.methods.selectors.registry import selector_of as selector_of_section
from curation_assets.quality.filtered_pool import pool_table, stored_pool, without_filtered
from curation_assets.signals.held_out import validation_key, validation_vectors
from curation_assets.signals.store import SignalStore, shard_records, signal_dir
from curation_assets.subsets.budget import most_samples, strata, take_within
from curation_assets.subsets.eligibility import eligible, low_signal
from curation_assets.subsets.out_of_core import Take, choose_out_of_core
from curation_assets.subsets.selection import HeldSelection, Selection, pieces, subset_rows
from curation_assets.subsets.spilled_pool import SpilledSelector
from curation_assets.workspace.fingerprints import input_fingerprint, shard_scores_fingerprint
from curation_assets.workspace.workspace import Workspace, cache_folder
from curation_resources.errors import UserError
from curation_resources.storage.digests import digest
from curation_resources.storage.spill import spilling

logger = logging.getLogger("curation")

SELECTION_VERSION = 3

POOL_COLUMNS = [name for name in tables.SAMPLE_SCORES.columns if name != "flags"]
"""Columns that selection reads, beside the score."""


class SelectionError(UserError):
    """A subset cannot be selected."""


def parameters_digest(workspace: Workspace, subset: Subset) -> str:
    """Return the digest of the selection's parameters: the code version of the subset's asset.

    Parameters of the scores themselves (alpha, history) are part of the manifest's fingerprint, so a subset waits for
    new scores instead of being selected from old ones.
    """
    eligibility = workspace.settings.score(subset.score).min_steps
    selector = selector_of(workspace, subset).model_dump(mode="json")
    return digest("subset", SELECTION_VERSION, subset.model_dump(mode="json"), selector, eligibility)


def selector_of(workspace: Workspace, subset: Subset) -> SelectorSection:
    """Return the selector that a subset names, else its method's default."""
    return subset.selector or method_of(workspace.settings.score(subset.score)).selector


def wanted_fingerprint(workspace: Workspace, subset: Subset) -> str | None:
    """Return the fingerprint that the subset should have; None while manifest or filter results are missing."""
    target = workspace.settings.score(subset.score).target
    manifest = workspace.warehouse.table_metadata(tables.score_manifest_path(target)).get("fingerprint")
    if manifest is None or (workspace.settings.corpus.filters.any and stored_pool(workspace) is None):
        return None
    return digest(parameters_digest(workspace, subset), manifest, stored_pool(workspace))


class Scores(NamedTuple):
    """The scores that a subset is chosen from, including exact duplicates, and their expected number of rows."""

    rows: pl.LazyFrame
    expected: int


def select(workspace: Workspace, subset: Subset) -> HeldSelection:
    """Select a subset from the stored scores, with its pool in memory; deterministic to the bit.

    Raises:
        SelectionError: the target has no manifest, or its scores were made with other parameters.
    """
    return _select_held(workspace, subset, _stored_scores(workspace, subset))


def select_into(workspace: Workspace, subset: Subset, take: Take) -> Selection:
    """Select a subset from any number of stored scores, with the same result as `select`.

    A pool of more rows than `engine.rows_in_memory` is sorted on disk, unless the selector compares vectors.

    Args:
        workspace: the configuration.
        subset: the subset to select.
        take: receives the rows of table `subset`, best first, in pieces.

    Raises:
        SelectionError: see `select`.
        SpillError: memory or disk is too small for the pool.
    """
    scores, engine = _stored_scores(workspace, subset), workspace.settings.engine
    selector, score = selector_of(workspace, subset), workspace.settings.score(subset.score)
    if scores.expected > engine.rows_in_memory and isinstance(selector, SpilledSelector):
        features, known = features_of(workspace, score), pool_table(workspace)
        prompts = None if features is None or features.prompts is None else features.prompts()
        with spilling(cache_folder() / "selection", engine.selection_memory_mib) as spill:
            return choose_out_of_core(spill, scores.rows, score, selector, subset, take, known, prompts)
    if scores.expected > engine.rows_in_memory:
        # Vectors dominate memory and every step reads all of them, so sorting on disk would not help.
        logger.warning(
            "subset %s: selector %s compares vectors, so its pool of %d rows is held in memory, although "
            "engine.rows_in_memory is %d.",
            *(subset.name, selector.kind, scores.expected, engine.rows_in_memory),
        )
    held = _select_held(workspace, subset, scores)
    for piece in pieces(held.rows):
        take(piece)
    return held.told


def survey(workspace: Workspace, subset: Subset) -> Selection:
    """Summarise the subset that would be chosen now; see `select_into`."""
    return select_into(workspace, subset, lambda _: None)


def _stored_scores(workspace: Workspace, subset: Subset) -> Scores:
    score = workspace.settings.score(subset.score)
    rows, expected = present_rows(workspace, workspace.settings.target(score.target))
    if rows is None:
        rows = tables.SAMPLE_SCORES.empty().lazy().with_columns(pl.lit(None, dtype=pl.Float64).alias(score.name))
    return Scores(rows.select(*POOL_COLUMNS, score=score.name), expected)


def present_rows(workspace: Workspace, target: Target) -> tuple[pl.LazyFrame | None, int]:
    """Return the rows of `sample_scores` that a selection starts from, and their number; None if there is no table.

    A run and a what-if select from these same rows: those of the present shards, or of the workspace's `only_shards`.

    Raises:
        SelectionError: see `current_manifest`.
    """
    manifest = current_manifest(workspace, target).filter("present")
    if workspace.only_shards is not None:
        manifest = manifest.filter(pl.col("shard").is_in(list(workspace.only_shards)))
    return workspace.warehouse.scan(tables.sample_scores_dir(target.name), manifest["shard"]), int(
        manifest["rows"].sum()
    )


def _select_held(workspace: Workspace, subset: Subset, scores: Scores) -> HeldSelection:
    score = workspace.settings.score(subset.score)
    pool, filtered = filtered_pool(workspace, resolve_duplicates(scores.rows))
    return choose(pool, score, selector_of(workspace, subset), subset, features_of(workspace, score), filtered)


def filtered_pool(workspace: Workspace, pool: Pool) -> tuple[Pool, dict[str, int]]:
    """Return the pool without samples removed by the corpus' filters, and their number by reason."""
    rows, filtered = without_filtered(workspace, pool.rows)
    return Pool(rows, pool.duplicates), filtered


def features_of(workspace: Workspace, score: ScoreSection) -> Features | None:
    """Return the embeddings that a score's method provides; None if it provides none."""
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
    # Cached, because every stratum uses the same validation vectors.
    return Features(vectors, cache(validation), prompts)


def choose(
    scored: Pool,
    score: ScoreSection,
    selector: SelectorSection,
    subset: Subset,
    features: Features | None = None,
    filtered: Mapping[str, int] | None = None,
) -> HeldSelection:
    """Choose a subset of scored samples, in memory.

    Args:
        scored: rows of `sample_scores` (POOL_COLUMNS), each sample once, with the score in column `score`.
        score: the score's configuration.
        selector: the selector.
        subset: filters, strata, budget.
        features: embeddings, for selectors that need them.
        filtered: samples removed from the pool by the corpus' filters, by reason.
    """
    pool = scored.rows
    may_pass = pool.select(eligible(score, subset.filters)).to_series().to_numpy()
    values = pool["score"].fill_null(float("nan")).to_numpy()
    by_vectors = selector_of_section(selector).vectors
    limit = most_samples(subset.budget, pool, may_pass) if by_vectors or not subset.stratify else None
    may, highest_first = may_pass & np.isfinite(values), method_of(score).highest_first
    found = Candidates(pool, values, may, highest_first, limit, features, int(may_pass.sum()))
    if by_vectors and subset.stratify:
        choice = order_by_stratum(selector, found, strata(pool, may_pass, subset.stratify))
    else:
        choice = order_by(selector, found)
    taken = take_within(choice.order, subset.budget, pool, may_pass, subset.stratify)
    selected = np.zeros(len(pool), dtype=np.bool_)
    selected[taken.positions] = True
    marks = {"eligible": may_pass, "low_signal": low_signal(pool), "selected": selected}
    pool = pool.with_columns(pl.Series(name, mark) for name, mark in marks.items())
    rows = subset_rows(pool[taken.positions], score.name)
    held_out = (
        None if features is None or features.prompts is None else int(pool["prompt_id"].is_in(features.prompts()).sum())
    )
    return HeldSelection(rows, pool, scored.duplicates, dict(filtered or {}), choice.left_out, taken.whole, held_out)


def current_manifest(workspace: Workspace, target: Target) -> pl.DataFrame:
    """Return a target's manifest of scores.

    Raises:
        SelectionError: there is no manifest, or the scores were made with other signals or parameters.
    """
    path = tables.score_manifest_path(target.name)
    if not workspace.warehouse.table_metadata(path):
        raise SelectionError(
            f"target {target.name} has no scores yet. Materialize {target.name}/score_manifest, or run `curate run`."
        )
    manifest = workspace.warehouse.read_table(path)
    stored = workspace.warehouse.folder_metadata(tables.sample_scores_dir(target.name))
    steps = workspace.warehouse.folder_metadata(tables.segmented_steps_dir())
    signals = workspace.settings.signals_of_scores(target)
    recorded = [shard_records(workspace, signal_dir(workspace, target, signal)) for signal in signals]
    validation = validation_key(workspace, target)
    behind = []
    for shard, signals_fp in manifest.filter("present").select("shard", "signal_fingerprint").iter_rows():
        left_out = [str(own[shard]["left_out"]) if shard in own else "" for own in recorded]
        steps_fp = input_fingerprint(steps[shard])
        wanted = shard_scores_fingerprint(workspace, target, signals_fp, steps_fp, left_out, validation)
        if stored[shard]["fingerprint"] != wanted:
            behind.append(shard)
    if behind:
        raise SelectionError(
            f"the scores of {len(behind)} shards of target {target.name} are outdated "
            f"({', '.join(behind[:3])}). Materialize {target.name}/sample_scores, or run `curate run`."
        )
    return manifest


def write_subset(workspace: Workspace, subset: Subset) -> Selection:
    """Select the subset and write it as the current one, piece by piece; on any error the previous one stays.

    Raises:
        SelectionError: see `select_into`.
    """
    # Computed before reading: scores that change in the meantime then mark the subset as outdated.
    fingerprint = str(wanted_fingerprint(workspace, subset))
    with workspace.warehouse.writing_table(tables.subset_path(subset.name), tables.SUBSET.schema) as table:
        selection = select_into(workspace, subset, table.add)
        table.metadata = {
            "fingerprint": fingerprint,
            "content_digest": selection.content_digest,
            "rows": str(selection.summary.selected),
            "whole": str(selection.whole),
        }
    return selection


def subset_due(workspace: Workspace, subset: Subset) -> bool:
    """Return whether the subset was selected from other scores or with other parameters."""
    wanted = wanted_fingerprint(workspace, subset)
    stored = workspace.warehouse.table_metadata(tables.subset_path(subset.name)).get("fingerprint")
    return wanted is not None and stored != wanted
