"""Select subsets from stored scores, and store them: what a run, a what-if, a release and a trace page share.

`curation_assets.subsets.choose_in_duckdb` holds the choice itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curation_assets import tables
from curation_assets.config.settings import Subset, Target, vectors_named
from curation_assets.corpus.duplicates import resolve_duplicates
from curation_assets.methods.combined import Combination
from curation_assets.methods.method import ScoreInputs, ScoreSection
from curation_assets.methods.registry import method_of
from curation_assets.methods.selectors import registry as selectors
from curation_assets.methods.selectors.candidates import Features, SelectorSection
from curation_assets.quality.filtered_pool import pool_table, stored_pool, without_filtered
from curation_assets.signals.held_out import validation_key, validation_vectors
from curation_assets.signals.store import SignalStore, shard_records, signal_dir
from curation_assets.subsets.choose_in_duckdb import (
    POOL_COLUMNS,
    READ_ROWS,
    Beside,
    Take,
    choose,
    choose_ids,
    reads_prompts,
)
from curation_assets.subsets.facts import Selection
from curation_assets.subsets.thresholds import CombinationError, Stage, names_read
from curation_assets.workspace.fingerprints import input_fingerprint, shard_scores_fingerprint
from curation_assets.workspace.workspace import Workspace, cache_folder
from curation_resources.errors import UserError
from curation_resources.storage.digests import digest
from curation_resources.storage.landing import file_name, printable
from curation_resources.storage.spill import spilling

logger = logging.getLogger("curation")

SELECTION_VERSION = 3

FACTS_VERSION = 6
"""Version of the facts that are stored with a subset; facts of another version are computed again."""
INFLUENCE_ROWS = 4096
"""Samples whose score for each validation set is computed at a time."""


class SelectionError(UserError):
    """A subset cannot be selected.

    Args:
        cause: what is wrong, without a full stop; or the whole message.
        fix: what to do about it.
    """

    def __init__(self, cause: str, fix: str = "") -> None:
        super().__init__(f"{cause}. {fix}" if fix else cause)
        self.cause = cause


class OutdatedScoresError(SelectionError):
    """Signals or steps of some shards have changed since the scores were made."""


def parameters_digest(workspace: Workspace, subset: Subset) -> str:
    """Return the digest of the selection's parameters: the code version of the subset's asset.

    Parameters of the scores themselves (alpha, history) are part of the manifest's fingerprint, so a subset waits for
    new scores instead of being selected from old ones.
    """
    eligibility = workspace.settings.score_of(subset).min_steps
    section = selector_of(workspace, subset)
    # Keys that came later are left out where they are not set, and a selector's version before 2, so that other subsets
    # stay up to date.
    parameters = subset.model_dump(mode="json")
    for key in ("standardise", "from"):
        if parameters[key] is None:
            del parameters[key]
    if not subset.filters.scores:
        del parameters["filters"]["scores"]
    parts = [_without_vectors(parameters), _without_vectors(section.model_dump(mode="json")), eligibility]
    version = selectors.selector_of(section).version
    return digest("subset", SELECTION_VERSION, *parts, *([version] if version > 1 else []))


def _without_vectors(section: dict[str, Any]) -> dict[str, Any]:
    """Return a section, and the selector in it, without the key `vectors` where it is not set."""
    kept = {key: value for key, value in section.items() if key != "vectors" or value is not None}
    return kept | ({"selector": _without_vectors(kept["selector"])} if isinstance(kept.get("selector"), dict) else {})


def selector_of(workspace: Workspace, subset: Subset) -> SelectorSection:
    """Return the selector that a subset names, else its method's default."""
    score = workspace.settings.score_of(subset)
    return subset.selector or method_of(score).default_selector(score)


def wanted_fingerprint(workspace: Workspace, subset: Subset) -> str | None:
    """Return the fingerprint that the subset should have; None while manifests or filter results are missing."""
    manifests = [
        workspace.warehouse.table_metadata(tables.score_manifest_path(target)).get("fingerprint")
        for target in workspace.settings.targets_of(subset)
    ]
    if None in manifests or (workspace.settings.corpus.filters.any and stored_pool(workspace) is None):
        return None
    before = []
    if subset.parent is not None:
        content = _content_of(workspace, workspace.settings.subset(subset.parent))
        if content is None:
            return None
        before.append(content)
    return digest(parameters_digest(workspace, subset), manifests[0], stored_pool(workspace), *manifests[1:], *before)


def _content_of(workspace: Workspace, subset: Subset) -> str | None:
    """Return what identifies a subset's rows: their digest, or if they are outdated the fingerprint that they should
    have, which makes every subset chosen from it outdated; None if that is not known yet."""
    wanted, stored = wanted_fingerprint(workspace, subset), _stored(workspace, subset)
    return stored["content_digest"] if wanted is not None and stored.get("fingerprint") == wanted else wanted


def _stored(workspace: Workspace, subset: Subset) -> dict[str, str]:
    """Return the metadata of the stored subset; empty if there is none."""
    return workspace.warehouse.table_metadata(tables.subset_path(subset.name))


def current(workspace: Workspace, subset: Subset) -> Chosen:
    """Return the subset as it is now: the stored one if it is up to date, else selected without writing.

    Raises:
        SelectionError: see `select_into`.
    """
    if is_current(workspace, subset):
        rows = workspace.warehouse.read_table(tables.subset_path(subset.name))
        return Chosen(rows, stored_selection(workspace, subset))
    return select(workspace, subset)


def is_current(workspace: Workspace, subset: Subset) -> bool:
    """Return whether the stored subset was selected from the current scores with the current parameters."""
    wanted = wanted_fingerprint(workspace, subset)
    return wanted is not None and _stored(workspace, subset).get("fingerprint") == wanted


class Chosen(NamedTuple):
    """Rows of table `subset`, in memory, and the facts about their selection."""

    rows: pl.DataFrame
    selection: Selection


def select(workspace: Workspace, subset: Subset) -> Chosen:
    """Select a subset from the stored scores, without writing it; see `select_from`."""
    pieces = [tables.SUBSET.empty()]
    selection = select_into(workspace, subset, pieces.append)
    return Chosen(pl.concat(pieces), selection)


def select_into(workspace: Workspace, subset: Subset, take: Take, explain: Take | None = None) -> Selection:
    """Select a subset from the stored scores; see `select_from`.

    Raises:
        SelectionError: a target has no manifest, or its scores were made with other parameters.
    """
    score = workspace.settings.score_of(subset)
    scored, beside = _arriving(workspace, subset)
    return select_from(workspace, subset, score, scored, take, beside, explain=explain)


def _chosen_ids(workspace: Workspace, subset: Subset) -> tuple[pl.DataFrame, Sequence[Stage]]:
    """Return the samples of a subset that is not stored as it would be now, in any order, and its funnel."""
    score, selector = workspace.settings.score_of(subset), selector_of(workspace, subset)
    scored, beside = _arriving(workspace, subset)
    features = _features(workspace, subset, score)
    found = [pl.DataFrame(schema={"sample_id": pl.String})]
    engine = workspace.settings.engine
    with _named(subset), spilling(cache_folder() / "selection", engine.selection_memory_mib) as spill:
        funnel = choose_ids(
            *(spill, scored, score, selector, subset, found.append, pool_table(workspace), features),
            many=engine.rows_in_memory,
            beside=beside,
        )
    return pl.concat(found), funnel


def _arriving(workspace: Workspace, subset: Subset) -> tuple[Iterator[pl.DataFrame], Beside]:
    """Return the rows that a subset is selected from, with stored scores, in pieces, and what is read beside them."""
    features = _features(workspace, subset, workspace.settings.score_of(subset))
    scored, beside = narrowed(workspace, _scored_rows(workspace, subset), beside_of(workspace, subset))
    if not reads_prompts(selector_of(workspace, subset), features, subset):
        # They take a fifth of all bytes.
        scored = scored.drop("prompt_id")
    return in_pieces(scored), beside


def narrowed(workspace: Workspace, rows: pl.LazyFrame, beside: Beside) -> tuple[pl.LazyFrame, Beside]:
    """Return the rows of a pool that a subset is chosen from, if the ids of these fit into memory; else all rows."""
    if beside.incoming is None or beside.incoming_rows > workspace.settings.engine.rows_in_memory:
        return rows, beside
    return rows.join(beside.incoming.select("sample_id"), on="sample_id", how="semi"), replace(beside, incoming=None)


def _scored_rows(workspace: Workspace, subset: Subset) -> pl.LazyFrame:
    """Return the rows of the pool with a subset's stored score in column `score`, null if it is a combination."""
    score = workspace.settings.score_of(subset)
    rows, count = present_rows(workspace, workspace.settings.target(score.target))
    value = pl.col(score.name) if count and isinstance(subset.score, str) else pl.lit(None, dtype=pl.Float64)
    return rows.select(*POOL_COLUMNS, *values_beside(workspace, subset, score.target), score=value)


def values_beside(workspace: Workspace, subset: Subset, target: str) -> list[pl.Expr]:
    """Return the stored scores of a target that a subset reads beside its own, in the columns of `beside_of`."""
    return [
        pl.col(name).alias(f"value_{place}")
        for place, name in enumerate(names_read(subset))
        if workspace.settings.score(name).target == target
    ]


def beside_of(workspace: Workspace, subset: Subset) -> Beside:
    """Return what a subset's selection reads beside its own score; see `Beside`.

    Raises:
        SelectionError: another target has no manifest, or its scores were made with other parameters; or the subset
            that this one is chosen from cannot be selected.
    """
    score = workspace.settings.score_of(subset)
    names = names_read(subset)
    columns = {name: f"value_{place}" for place, name in enumerate(names)}
    if isinstance(subset.score, str):
        columns[subset.score] = "score"
    of = {name: workspace.settings.score(name).target for name in names}
    others = [
        present_rows(workspace, workspace.settings.target(target))[0].select(
            "sample_id", *values_beside(workspace, subset, target)
        )
        for target in dict.fromkeys(of.values())
        if target != score.target
    ]
    arriving = [columns[name] for name in names if of[name] == score.target]
    if subset.parent is None:
        return Beside(columns, arriving, others)
    before = workspace.settings.subset(subset.parent)
    # A release is reproduced from the files that it was made from, so that its earlier stages are, too.
    if workspace.only_shards is None and is_current(workspace, before):
        stored = workspace.warehouse.scan_table(tables.subset_path(before.name))
        assert stored is not None
        size = int(_stored(workspace, before)["rows"])
        return Beside(columns, arriving, others, stored, size, stored_selection(workspace, before).funnel)
    found, funnel = _chosen_ids(workspace, before)
    return Beside(columns, arriving, others, found.lazy(), len(found), funnel)


@contextmanager
def _named(subset: Subset) -> Iterator[None]:
    """Name the subset in an error about its scores."""
    try:
        yield
    except CombinationError as error:
        raise SelectionError(f"subset {subset.name}: {error}") from error


def in_pieces(rows: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    """Yield rows in pieces, in any order."""
    yield from rows.collect_batches(chunk_size=READ_ROWS, maintain_order=False, engine="streaming")


def pool_of(workspace: Workspace, subset: Subset, chosen: pl.DataFrame) -> pl.DataFrame:
    """Return what a subset is chosen from, in memory, each sample once.

    Columns are POOL_COLUMNS, `score`, `dropped` (by a threshold: `thresholds.apply_threshold`), `may` (be chosen; null
    where that follows from eligibility and score), `rank`, `reason` and `selected`.

    Args:
        workspace: the configuration.
        subset: a subset.
        chosen: its rows.

    Raises:
        SelectionError: see `current_manifest`.
        QualityError: the corpus' filters have not been applied to some of the samples.
    """
    pool = resolve_duplicates(_scored_rows(workspace, subset).select(*POOL_COLUMNS, "score")).rows
    pool = without_filtered(workspace, pool)[0]
    plain = isinstance(subset.score, str) and vectors_named(subset.selector) is None
    if subset.parent is None and not subset.filters.scores and plain:
        pool = pool.with_columns(dropped=pl.lit(None, dtype=pl.Int16), may=pl.lit(None, dtype=pl.Boolean))
    else:
        schema = {"sample_id": pl.String, "score": pl.Float64, "dropped": pl.Int16, "may": pl.Boolean}
        pieces = [pl.DataFrame(schema=schema)]
        kept = pieces[0].columns
        select_into(workspace, subset, lambda _: None, lambda rows: pieces.append(rows.select(kept)))
        pool = pool.drop("score").join(pl.concat(pieces), on="sample_id", how="inner", maintain_order="left")
    marks = chosen.select("sample_id", "rank", "reason")
    marked = pool.join(marks, on="sample_id", how="left", maintain_order="left")
    return marked.with_columns(selected=pl.col("rank").is_not_null())


def eligible_samples(workspace: Workspace, subset: Subset) -> list[str]:
    """Return the samples that pass a subset's filters and thresholds, sorted, with or without a score."""
    found = [pl.DataFrame(schema={"sample_id": pl.String})]
    select_into(
        *(workspace, subset, lambda _: None),
        explain=lambda rows: found.append(rows.filter("eligible").select("sample_id")),
    )
    return pl.concat(found)["sample_id"].sort().to_list()


def select_from(
    workspace: Workspace,
    subset: Subset,
    score: ScoreSection,
    scored: Iterable[pl.DataFrame],
    take: Take,
    beside: Beside,
    duplicates: int | None = None,
    explain: Take | None = None,
) -> Selection:
    """Select a subset from scored rows; deterministic to the bit. Runs and what-ifs both select with it.

    Sorting spills to disk beyond `engine.selection_memory_mib`. Only a selector that compares vectors, or brings its
    own order, holds its candidates in memory.

    Args:
        workspace: the configuration.
        subset: the subset to select.
        score: its score.
        scored: see `choose`.
        take: receives the rows of table `subset`, best first, in pieces.
        beside: see `choose`.
        duplicates: see `choose`.
        explain: see `choose`.

    Raises:
        SelectionError: scores cannot be combined.
        QualityError: the corpus' filters have not been applied to some of the samples.
        SpillError: memory or disk is too small for the pool.
    """
    selector = subset.selector or method_of(score).default_selector(score)
    features = _features(workspace, subset, score)
    engine = workspace.settings.engine
    with _named(subset), spilling(cache_folder() / "selection", engine.selection_memory_mib) as spill:
        return choose(
            *(spill, scored, score, selector, subset, take, pool_table(workspace), features),
            many=engine.rows_in_memory,
            duplicates=duplicates,
            beside=beside,
            explain=explain,
        )


def present_rows(workspace: Workspace, target: Target) -> tuple[pl.LazyFrame, int]:
    """Return the rows of `sample_scores` that a selection starts from, and their number.

    These are the rows of the present shards, or of the workspace's `only_shards`.

    Raises:
        SelectionError: see `current_manifest`.
    """
    manifest = current_manifest(workspace, target).filter("present")
    if workspace.only_shards is not None:
        manifest = manifest.filter(pl.col("shard").is_in(list(workspace.only_shards)))
    rows = workspace.warehouse.scan(tables.sample_scores_dir(target.name), manifest["shard"])
    return (tables.SAMPLE_SCORES.empty().lazy(), 0) if rows is None else (rows, int(manifest["rows"].sum()))


def _features(workspace: Workspace, subset: Subset, score: ScoreSection) -> Features | None:
    """Return the embeddings that a subset's selector compares, and the prompts that its score was compared with."""
    own = None if isinstance(subset.score, Combination) else features_of(workspace, score)
    if vectors_named(subset.selector) is None:
        return own
    found = features_of(workspace, workspace.settings.vector_score_of(subset))
    return found if own is None or found is None else replace(found, prompts=own.prompts)


def features_of(workspace: Workspace, score: ScoreSection, place: str = "") -> Features | None:
    """Return the embeddings that a score's method provides; None if it provides none.

    `place` is where the samples' signals are (`SignalStore.of`).
    """
    signal = method_of(score).vectors
    if signal is None:
        return None
    target = workspace.settings.target(score.target)

    def vectors(sample_ids: pl.Series) -> NDArray[np.float32]:
        stored = SignalStore.of(workspace, target, signal, place).rows(sample_ids)
        assert stored is not None
        wanted = sample_ids.to_frame("sample_id").join(stored, on="sample_id", how="left", maintain_order="left")
        return method_of(score).to_vectors(wanted)

    sets = cache(lambda: validation_vectors(workspace, target, score))

    def validation() -> NDArray[np.float32]:
        return in_turns(list(sets().values()))

    def influence(sample_ids: pl.Series) -> NDArray[np.float64]:
        store, method = SignalStore.of(workspace, target, signal, place), method_of(score)
        found = np.empty((len(sample_ids), len(sets())))
        for start in range(0, len(sample_ids), INFLUENCE_ROWS):
            ids = sample_ids.slice(start, INFLUENCE_ROWS).rename("sample_id").to_frame()
            rows = store.rows(ids["sample_id"])
            assert rows is not None
            for column, (name, vectors) in enumerate(sets().items()):
                alone = score.model_copy(update={"validation": [name]})
                inputs = ScoreInputs(ids, {signal: rows}, steps=False, validation={name: vectors})
                values = ids.join(method.score(inputs, alone).values, on="sample_id", how="left", maintain_order="left")
                found[start : start + len(ids), column] = values["value"].to_numpy()
        return found

    def prompts() -> list[str]:
        sets = [
            workspace.warehouse.scan_table(tables.validation_path(name)) for name in method_of(score).validation(score)
        ]
        found = [scan.select("prompt_id").unique().collect()["prompt_id"] for scan in sets if scan is not None]
        return pl.concat(found).unique().to_list()

    if not method_of(score).validation(score):
        return Features(vectors)
    # Cached, because every stratum uses the same validation vectors.
    return Features(vectors, cache(validation), prompts, influence)


def in_turns(sets: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the vectors [M, d] of several sets in the order of their turns: each set in turn, its samples in rotation.

    Every set has as many turns as the largest; the samples of smaller ones come again.
    """
    turns = max(map(len, sets))
    return np.stack([own[turn % len(own)] for turn in range(turns) for own in sets])


def current_manifest(workspace: Workspace, target: Target) -> pl.DataFrame:
    """Return a target's manifest of scores.

    Raises:
        SelectionError: there is no manifest.
        OutdatedScoresError: the scores were made with other signals, steps or parameters.
    """
    path = tables.score_manifest_path(target.name)
    if not workspace.warehouse.table_metadata(path):
        raise SelectionError(
            f"target {target.name} has no scores yet",
            f"Run `curate run`, or materialize {target.name}/score_manifest.",
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
        raise OutdatedScoresError(
            f"the scores of {len(behind)} shards of target {target.name} are outdated ({_some(behind)})",
            f"Run `curate run`, or materialize the outdated signals and {target.name}/sample_scores.",
        )
    return manifest


def _some(shards: Sequence[str]) -> str:
    """Return the first names of a list of shards, as their files are called."""
    named = [printable(file_name(shard)) for shard in shards[:3]]
    return ", ".join([*named, "..."] if len(shards) > 3 else named)


def write_subset(workspace: Workspace, subset: Subset) -> Selection:
    """Select the subset and write it as the current one, piece by piece; on any error the previous one stays.

    Raises:
        SelectionError: see `select_into`.
    """
    for before in workspace.settings.chain(subset)[:-1]:
        if not is_current(workspace, before):
            raise OutdatedScoresError(
                f"subset {subset.name} is chosen from {before.name}, which is not up to date",
                f"Run `curate run`, or materialize subsets/{before.name} first.",
            )
    # Computed before reading: scores that change in the meantime then mark the subset as outdated.
    fingerprint = str(wanted_fingerprint(workspace, subset))
    with workspace.warehouse.writing_table(tables.subset_path(subset.name), tables.SUBSET.schema) as table:
        selection = select_into(workspace, subset, table.add)
        table.metadata = {
            "fingerprint": fingerprint,
            "content_digest": selection.content_digest,
            "rows": str(selection.summary.selected),
            "whole": str(selection.whole),
            **({"warnings": "; ".join(selection.warnings)} if selection.warnings else {}),
        }
    _store(workspace, subset, fingerprint, selection)
    return selection


def _store(workspace: Workspace, subset: Subset, fingerprint: str, selection: Selection) -> None:
    """Write the facts about the selection of the subset with this fingerprint."""
    # The stages before may come to the same samples in another way later, which does not make this subset outdated.
    own = replace(selection, funnel=tuple(stage for stage in selection.funnel if stage.subset == subset.name))
    document = {"version": FACTS_VERSION, "fingerprint": fingerprint, "selection": own.document()}
    workspace.warehouse.write_json(tables.selection_path(subset.name), document)


def stored_selection(workspace: Workspace, subset: Subset) -> Selection:
    """Return the facts about the selection of the current subset, as they were stored with it.

    Where they are missing (a subset of an earlier version, or of a process that died) or cannot be read, the subset is
    selected again, and they are stored if the result is the stored subset.

    Raises:
        SelectionError: see `select_into`.
    """
    stored = _stored(workspace, subset)
    try:
        document = workspace.warehouse.read_json(tables.selection_path(subset.name))
        if document is not None and (document["version"], document["fingerprint"]) == (
            FACTS_VERSION,
            stored.get("fingerprint"),
        ):
            found = Selection.of_document(document["selection"])
            return replace(found, funnel=(*_funnel_before(workspace, subset), *found.funnel))
    except (ValueError, TypeError, KeyError) as error:
        shown = workspace.warehouse.storage.shown(tables.selection_path(subset.name))
        logger.warning("%s cannot be read (%s); the subset is selected again.", shown, error)
    selection = select_into(workspace, subset, lambda _: None)
    if selection.content_digest == stored.get("content_digest"):
        _store(workspace, subset, stored["fingerprint"], selection)
    return selection


def _funnel_before(workspace: Workspace, subset: Subset) -> Sequence[Stage]:
    """Return the stages of the stored subsets that a subset is chosen from."""
    if subset.parent is None:
        return ()
    before = workspace.settings.subset(subset.parent)
    return (
        stored_selection(workspace, before).funnel
        if _stored(workspace, before)
        else beside_of(workspace, subset).before
    )


def subset_due(workspace: Workspace, subset: Subset) -> bool:
    """Return whether the subset was selected from other scores or with other parameters."""
    wanted = wanted_fingerprint(workspace, subset)
    return wanted is not None and _stored(workspace, subset).get("fingerprint") != wanted
