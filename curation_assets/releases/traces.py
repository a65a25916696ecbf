"""Traces for a page: a subset's pool or a release, with steps, scores and the reason for each selection."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Subset
from curation_assets.corpus.ingest import corpus_rows
from curation_assets.methods.method import ScoreSection
from curation_assets.methods.registry import METHODS, method_of
from curation_assets.releases.card import standardised_of
from curation_assets.releases.export import ExportError, release_frame
from curation_assets.releases.file_names import MANIFEST
from curation_assets.releases.step_columns import STEP_COLUMNS, VALUES, step_columns
from curation_assets.subsets.audited import VERDICTS, audit_of
from curation_assets.subsets.eligibility import marked_right
from curation_assets.subsets.facts import Marks, right_facts, right_text, standardised_text
from curation_assets.subsets.reasons import reasons
from curation_assets.subsets.select import current, pool_of, selector_of
from curation_assets.subsets.step_positions import StepPositions, step_positions
from curation_assets.subsets.thresholds import Stage
from curation_assets.tables.audit import METHOD_AUDIT
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError, in_a_line
from curation_resources.scoring.samples import without_nulls
from curation_resources.storage.digests import digest
from curation_resources.storage.files import Storage

MOST_TRACES = 10_000
"""Maximum number of traces on a page; a larger pool is sampled."""

DIGITS = 6
"""Significant digits of a score on a page."""

POSITIONS = 1_001
"""Number of positions of the threshold slider."""

CONTENT = ("messages", "response", "images", "image_digests")
SHOWN = ("sample_id", "prompt_id", "source", "generator", "domain", "correct", "shard", "row", "score", "rank", "why")
LENGTHS = ("n_steps", "response_tokens")
COLUMNS = (*SHOWN, *LENGTHS, "flags", *CONTENT, *STEP_COLUMNS)


@dataclass(frozen=True)
class Survivors:
    """Exact counts of what remains at every position of the threshold slider, over the whole pool.

    Attributes:
        thresholds: scores, evenly spaced from the lowest to the highest.
        samples: number of samples that pass the threshold.
        steps: steps of these samples.
        tokens: length of their responses, in `unit`.
        unit: tokens, or characters if token counts are not known.
    """

    thresholds: Sequence[float]
    samples: Sequence[int]
    steps: Sequence[int]
    tokens: Sequence[int]
    unit: str = "tokens"


@dataclass(frozen=True)
class Traces:
    """The traces of a page.

    Attributes:
        title: content of the page, such as `subset best` or `release best@2`.
        facts: names and values for the head of the page.
        score: name of the score.
        scored_by: identity of the score; values of different scores are not compared.
        highest_first: whether higher scores are selected first.
        rows: one row per trace, COLUMNS (`rank` is null for traces that were not selected); in a comparison also
            `other_score`, `other_rank` and `member` (both, first, second).
        of: total number of traces, including those not sampled for the page.
        survivors: counts over all traces.
        scores: `sample_id` and `score` of all traces.
        positions: mean and deviation of the pool's step scores by position; None if they are not known.
        audit: rows of table `method_audit` about the score; None if it was not audited.
        funnel: what each stage of the selection left; empty if it is not recorded.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    score: str
    scored_by: str
    highest_first: bool
    rows: pl.DataFrame
    of: int
    survivors: Survivors
    scores: pl.DataFrame
    positions: StepPositions | None = None
    audit: pl.DataFrame | None = None
    funnel: Sequence[Stage] = ()


def subset_traces(
    workspace: Workspace, subset: Subset, most: int = MOST_TRACES, *, chosen_only: bool = False
) -> Traces:
    """Return a subset's pool as it would be selected now, with the reason why each sample was or was not selected.

    Args:
        workspace: the configuration.
        subset: one of its subsets.
        most: maximum number of traces; a larger pool is sampled by whole prompts, those with selected traces first.
        chosen_only: return all selected traces and nothing else, for a comparison.

    Raises:
        SelectionError: there are no scores to select by.
    """
    score, made = workspace.settings.score_of(subset), current(workspace, subset)
    chosen = made.rows
    exact = pool_of(workspace, subset, chosen)
    pool = exact.with_columns(shown_score())
    shown = in_order(pool.filter("selected")) if chosen_only else draw_prompts(pool, most)
    selector = selector_of(workspace, subset)
    highest_first = takes_highest(selector.model_dump(mode="json"), method_of(score).highest_first)
    ids = shown["sample_id"]
    content = corpus_rows(workspace, ids.to_list()).select("sample_id", *CONTENT)
    rows = (
        shown.with_columns(why=reasons(shown, exact, workspace, subset))
        .join(content, on="sample_id", how="left", maintain_order="left")
        .join(_flags(workspace, score.target, ids), on="sample_id", how="left", maintain_order="left")
        .join(step_columns(workspace, subset, ids), on="sample_id", how="left", maintain_order="left")
    )
    facts = [
        ("score", f"{score.name}: {method_of(score).summary}"),
        ("measured with", workspace.settings.target(score.target).model),
        ("selected", f"{len(chosen):,} of {len(pool):,}"),
        ("selector", selector.kind),
        *([] if subset.parent is None else [("chosen from", f"subset {subset.parent}")]),
        *([] if subset.standardise is None else [("ranked by", standardised_text(score.name))]),
    ]
    marks, selected_marks = (
        Marks().adding(rows.select(marked_right()).to_series()) for rows in (exact, exact.filter("selected"))
    )
    right = right_text(right_facts(marks, selected_marks))
    if right is not None:
        facts.append(("marked right", right))
    title = f"subset {subset.name}"
    of = len(rows) if chosen_only else len(pool)
    return Traces(
        title,
        facts,
        score.name,
        _identity(score.model_dump(mode="json")),
        highest_first,
        rows.select(COLUMNS),
        of,
        survivors_of(pool, highest_first),
        pool.select("sample_id", "score"),
        step_positions(workspace, workspace.settings.step_score_of(subset)),
        _audit(workspace, score),
        made.selection.funnel,
    )


def release_traces(storage: Storage, place: str, most: int | None = MOST_TRACES) -> Traces:
    """Return the rows of a release, or of a copy of one; at most `most`, or all.

    Raises:
        ExportError: the folder is not a release, or its files cannot be read.
    """
    return traces_of(*release_frame(storage, place), most)


def traces_of(frame: pl.DataFrame, manifest: Mapping[str, Any], most: int | None) -> Traces:
    """Return the rows of a release with this manifest; at most `most`, or all."""
    frame = frame.with_columns(
        shown_score(),
        n_steps=pl.col("step_spans").list.len().cast(pl.Int32),
        # A release counts characters, because tokens depend on the model.
        response_tokens=pl.lit(None, dtype=pl.Int32),
        flags=pl.lit([], dtype=pl.List(pl.String)),
        why=pl.col("reason"),
        # In the corpus' format.
        messages=pl.Series([json.dumps(turns[:-1]) for turns in without_nulls(frame["messages"].to_list())]),
    )
    parameters = manifest["parameters"]
    facts = [
        ("score", f"{parameters['score']['name']}: {parameters['method']['summary']}"),
        ("measured with", parameters["target"]["model"]),
        ("rows", f"{len(frame):,} of a pool of {manifest['selection']['pool']:,}"),
        ("content digest", manifest["content_digest"]),
        *([] if (standardised := standardised_of(manifest)) is None else [("ranked by", standardised)]),
    ]
    right = right_text(manifest["selection"])
    if right is not None:
        facts.append(("marked right", right))
    method = METHODS.get(parameters["method"]["name"])
    highest_first = takes_highest(parameters["selector"], method is None or method.highest_first)
    rows = in_order(frame) if most is None else draw_prompts(frame, most)
    return Traces(
        f"release {manifest['subset']}@{manifest['number']}",
        [(name, str(value)) for name, value in facts],
        str(parameters["score"]["name"]),
        _identity(parameters["score"]),
        highest_first,
        rows.select(COLUMNS),
        len(frame),
        survivors_of(frame, highest_first),
        frame.select("sample_id", "score"),
        StepPositions.of_document(manifest.get("step_positions")),
        _audit_in(manifest),
        tuple(Stage(**stage) for stage in manifest.get("funnel", [])),
    )


def _audit(workspace: Workspace, score: ScoreSection) -> pl.DataFrame | None:
    try:
        return audit_of(workspace, score)
    except UserError:
        # Without the model, it cannot be told whether the audit is of this checkpoint.
        return None


def _audit_in(manifest: Mapping[str, Any]) -> pl.DataFrame | None:
    """Return what a release's manifest says about the audit of its score; None if there was none.

    Raises:
        ExportError: these are not rows of table `method_audit`.
    """
    found = manifest.get("audit")
    if found is None:
        return None
    needed = ["target", "score", "configured", "kind", "measure", "within"]
    try:
        rows = pl.DataFrame(found, METHOD_AUDIT.schema, strict=True)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
        raise ExportError(f"{MANIFEST}: audit cannot be read ({in_a_line(error)}). Restore it from a copy.") from error
    odd = rows.filter(pl.col("verdict").is_not_null() & ~pl.col("verdict").is_in(list(VERDICTS)))
    if len(odd) or any(rows[name].null_count() for name in needed):
        raise ExportError(f"{MANIFEST}: audit is not of table method_audit. Restore it from a copy.")
    return rows


def takes_highest(selector: Mapping[str, Any], method_does: bool) -> bool:
    """Return whether higher scores are selected first: the selector's order, else the method's."""
    order = selector.get("order")
    return order == "highest" if order in ("highest", "lowest") else method_does


def shown_score() -> pl.Expr:
    """Return the score rounded to the digits of the page, so that counts here and filtering there agree."""
    return pl.col("score").cast(pl.Float64).round_sig_figs(DIGITS)


def _identity(score: Mapping[str, Any]) -> str:
    return json.dumps(score, sort_keys=True)


def in_order(rows: pl.DataFrame) -> pl.DataFrame:
    """Sort by score, highest first, with ties by id."""
    return rows.sort("score", "sample_id", descending=[True, False], nulls_last=True)


def compared(first: Traces, second: Traces, most: int = MOST_TRACES) -> Traces:
    """Return the traces selected by either of two, with `member`: both, first or second.

    Both arguments must hold everything they selected. Scores are those of the first; for traces that only the second
    selected, they are known if the first scored them too. Steps with another score are shown without scores.
    """
    ours, theirs = (one.rows.filter(pl.col("rank").is_not_null()) for one in (first, second))
    other = theirs.select("sample_id", other_score="score", other_rank="rank")
    left = ours.join(other, on="sample_id", how="left", maintain_order="left")
    only = theirs.join(ours, on="sample_id", how="anti").with_columns(other_score="score", other_rank="rank")
    only = only.drop("score").join(first.scores, on="sample_id", how="left", maintain_order="left")
    same = first.scored_by == second.scored_by
    if same:
        only = only.with_columns(score=pl.coalesce("score", "other_score"))
    else:
        only = only.with_columns(pl.lit(None, dtype=STEP_COLUMNS[name]).alias(name) for name in VALUES)
    only = only.with_columns(rank=pl.lit(None, dtype=pl.Int64))
    rows = pl.concat([left, only.select(left.columns)], how="vertical_relaxed")
    absent = pl.when(pl.col("rank").is_null()).then(pl.lit("second"))
    member = absent.when(pl.col("other_rank").is_null()).then(pl.lit("first")).otherwise(pl.lit("both"))
    rows = rows.with_columns(member=member)
    counts = dict(rows.group_by("member").len().iter_rows())
    sizes = " / ".join(f"{counts.get(name, 0):,}" for name in ("both", "first", "second"))
    facts = [
        ("first", f"{first.title}, by {first.facts[0][1]}"),
        ("second", f"{second.title}, by {second.facts[0][1]}"),
        ("in both / only first / only second", sizes),
        *([] if same else [("scores", "differ; the first's are shown")]),
    ]
    title = f"{first.title} compared with {second.title}"
    survivors = survivors_of(rows, first.highest_first)
    drawn = draw_prompts(rows, most, chosen=pl.lit(value=True))
    positions = first.positions or (second.positions if same else None)
    return replace(first, title=title, facts=facts, rows=drawn, of=len(rows), survivors=survivors, positions=positions)


def draw_prompts(rows: pl.DataFrame, most: int, chosen: pl.Expr | None = None) -> pl.DataFrame:
    """Sample whole prompts up to this number of rows: prompts with a selected row first, otherwise by hash.

    Prompts without a selected row get at least a quarter of the page, so that they can be inspected too. A prompt
    with more rows than fit is skipped; if none fits, the smallest one is shown.
    """
    if len(rows) <= most:
        return in_order(rows)
    is_chosen = (pl.col("rank").is_not_null() if chosen is None else chosen).any()
    prompts = rows.group_by("prompt_id").agg(chosen=is_chosen, size=pl.len())
    order = pl.Series("order", [digest("viewer", name) for name in prompts["prompt_id"]])
    sizes = prompts.with_columns(order).sort("order").select("prompt_id", "chosen", "size").rows()
    with_chosen = [(name, size) for name, has, size in sizes if has]
    others = [(name, size) for name, has, size in sizes if not has]
    share = min(sum(size for _, size in others), most // 4)
    taken, filled = _within(with_chosen, most - share)
    taken += _within(others, most - filled)[0]
    if not taken:
        taken = [min(sizes, key=lambda one: (one[2], one[0]))[0]]
    return in_order(rows.filter(pl.col("prompt_id").is_in(taken)))


def _within(prompts: Sequence[tuple[str, int]], most: int) -> tuple[list[str], int]:
    """Return the prompts, in order, whose rows still fit, and their number of rows."""
    taken, filled = [], 0
    for name, size in prompts:
        if filled + size <= most:
            taken.append(name)
            filled += size
    return taken, filled


def survivors_of(rows: pl.DataFrame, highest_first: bool = True) -> Survivors:
    """Count what is left at evenly spaced thresholds: above each, or below it if lower scores are better."""
    scored = rows.filter(pl.col("score").is_finite()).sort("score", descending=highest_first)
    if scored.is_empty():
        return Survivors([], [], [], [])
    ascending = scored["score"].sort()
    low, high = float(ascending[0]), float(ascending[-1])
    thresholds = [low + (high - low) * place / (POSITIONS - 1) for place in range(POSITIONS)]
    # Rounding must not exclude the highest score.
    thresholds[-1] = high
    places = ascending.search_sorted(pl.Series(thresholds), side="left" if highest_first else "right").to_list()
    left = [len(scored) - place if highest_first else place for place in places]
    # A release has no token counts; in a pool either all are known or none, except for samples not measured.
    characters = "response" in rows.columns and rows["response_tokens"].null_count() > 0
    lengths = scored["response"].str.len_chars() if characters else scored["response_tokens"]
    sums = [[0, *one.fill_null(0).cast(pl.Int64).cum_sum().to_list()] for one in (scored["n_steps"], lengths)]
    steps, length = ([total[count] for count in left] for total in sums)
    return Survivors(thresholds, left, steps, length, "characters" if characters else "tokens")


def _flags(workspace: Workspace, target: str, ids: pl.Series) -> pl.DataFrame:
    scan = workspace.warehouse.scan(tables.sample_scores_dir(target))
    table = tables.SAMPLE_SCORES.empty().lazy() if scan is None else scan
    return (
        table.select("sample_id", "flags")
        .filter(pl.col("sample_id").is_in(ids.implode()))
        .unique("sample_id", keep="first")
        .collect()
    )
