"""What a page shows: traces of a subset's pool or of a release, each with its steps, scores and why it was chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Subset
from curation_assets.corpus.ingest import corpus_rows
from curation_assets.methods.registry import METHODS, method_of
from curation_assets.releases.export import release_frame
from curation_assets.releases.step_columns import STEP_COLUMNS, VALUES, step_columns
from curation_assets.subsets.eligibility import passes
from curation_assets.subsets.select import select, selector_of
from curation_assets.subsets.selection import HeldSelection
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.digests import digest
from curation_resources.storage.files import Storage

MOST_TRACES = 10_000
"""On a page; more are drawn from."""

DIGITS = 6
"""Significant digits of a score on a page."""

POSITIONS = 1_001
"""Of the slider that a threshold is chosen with."""

CONTENT = ("messages", "response", "images", "image_digests")
SHOWN = ("sample_id", "prompt_id", "source", "generator", "domain", "correct", "shard", "row", "score", "rank", "why")
LENGTHS = ("n_steps", "response_tokens")
COLUMNS = (*SHOWN, *LENGTHS, "flags", *CONTENT, *STEP_COLUMNS)


@dataclass(frozen=True)
class Survivors:
    """How much is left above every position of a threshold's slider, exactly, of all there is to choose from.

    Attributes:
        thresholds: scores, evenly spaced from the lowest to the highest.
        samples: that score at least as much.
        steps: of these samples.
        tokens: of their responses, in `unit`.
        unit: tokens, or characters where tokens are not known.
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
        title: what it shows, as `subset best` or `release best@2`.
        facts: names and values for the head of the page.
        score: name of the score.
        scored_by: all that says which score it is: numbers of others are not held against these.
        highest_first: whether a higher score is chosen first.
        rows: one a trace, COLUMNS (`rank` is null of what was not chosen); of a comparison also `other_score`,
            `other_rank` and `member` (both, first, second).
        of: how many traces there are, if some were drawn; else that many.
        survivors: of all of them.
        scores: `sample_id` and `score` of all of them.
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


def subset_traces(
    workspace: Workspace, subset: Subset, most: int = MOST_TRACES, *, chosen_only: bool = False
) -> Traces:
    """The pool of a subset as it would be chosen now: what was chosen, and what was not and why.

    Args:
        workspace: the configuration.
        subset: one of its subsets.
        most: traces on the page; of more whole prompts are drawn, those of chosen traces first.
        chosen_only: all that was chosen and nothing else, to be compared.

    Raises:
        SelectionError: there are no scores to choose by.
    """
    selection, score = select(workspace, subset), workspace.settings.score(subset.score)
    pool = selection.pool.join(selection.rows.select("sample_id", "rank", "reason"), on="sample_id", how="left")
    pool = pool.with_columns(shown_score())
    shown = in_order(pool.filter("selected")) if chosen_only else draw_prompts(pool, most)
    selector = selector_of(workspace, subset)
    highest_first = takes_highest(selector.model_dump(mode="json"), method_of(score).highest_first)
    ids = shown["sample_id"]
    content = corpus_rows(workspace, ids.to_list()).select("sample_id", *CONTENT)
    rows = (
        shown.with_columns(why=why_column(shown, selection, workspace, subset))
        .join(content, on="sample_id", how="left", maintain_order="left")
        .join(_flags(workspace, score.target, ids), on="sample_id", how="left", maintain_order="left")
        .join(step_columns(workspace, subset, ids), on="sample_id", how="left", maintain_order="left")
    )
    facts = [
        ("score", f"{score.name}: {method_of(score).summary}"),
        ("measured with", workspace.settings.target(score.target).model),
        ("chosen", f"{len(selection.rows):,} of {len(pool):,}"),
        ("selector", selector.kind),
    ]
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
    )


def release_traces(storage: Storage, place: str, most: int | None = MOST_TRACES) -> Traces:
    """The rows of a release, or of a copy of one; `most` of them, or all.

    Raises:
        ExportError: it is no release, or its files cannot be read.
    """
    frame, manifest = release_frame(storage, place)
    frame = frame.with_columns(
        shown_score(),
        n_steps=pl.col("step_spans").list.len().cast(pl.Int32),
        # A release counts in characters: another model has other tokens.
        response_tokens=pl.lit(None, dtype=pl.Int32),
        flags=pl.lit([], dtype=pl.List(pl.String)),
        why=pl.col("reason"),
        # As the corpus has them.
        messages=pl.Series([json.dumps(turns) for turns in frame.select(_prompt_turns()).to_series().to_list()]),
    )
    parameters = manifest["parameters"]
    facts = [
        ("score", f"{parameters['score']['name']}: {parameters['method']['summary']}"),
        ("measured with", parameters["target"]["model"]),
        ("rows", f"{len(frame):,} of a pool of {manifest['selection']['pool']:,}"),
        ("content digest", manifest["content_digest"]),
    ]
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
    )


def takes_highest(selector: Mapping[str, Any], method_does: bool) -> bool:
    """Whether a higher score is chosen first: as the selector says, else as its method has it."""
    order = selector.get("order")
    return order == "highest" if order in ("highest", "lowest") else method_does


def shown_score() -> pl.Expr:
    """The score in as many digits as a page has of it: what is counted here and filtered there is one number."""
    return pl.col("score").cast(pl.Float64).round_sig_figs(DIGITS)


def _identity(score: Mapping[str, Any]) -> str:
    return json.dumps(score, sort_keys=True)


def in_order(rows: pl.DataFrame) -> pl.DataFrame:
    """Highest score first, ties by id."""
    return rows.sort("score", "sample_id", descending=[True, False], nulls_last=True)


def compared(first: Traces, second: Traces, most: int = MOST_TRACES) -> Traces:
    """What either of two has chosen, and which of them: `member` is both, first or second.

    Both must hold all that they chose. Scores are those of the first; of what only the second chose they are known if
    the first scored it, too. Steps that were scored by another score are shown without scores.
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
        *([] if same else [("scores", "are not the same: those shown are the first's")]),
    ]
    title = f"{first.title} beside {second.title}"
    survivors = survivors_of(rows, first.highest_first)
    drawn = draw_prompts(rows, most, chosen=pl.lit(value=True))
    return replace(first, title=title, facts=facts, rows=drawn, of=len(rows), survivors=survivors)


def draw_prompts(rows: pl.DataFrame, most: int, chosen: pl.Expr | None = None) -> pl.DataFrame:
    """Rows of whole prompts until there are so many; those with a chosen row before others, else by their hashes.

    Others get a quarter of the page at least, so that what was not chosen can be seen too. A prompt with more rows than
    fit is left out; if all have, the smallest is shown.
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
    """Prompts, in order, whose rows still fit, and how many rows these are."""
    taken, filled = [], 0
    for name, size in prompts:
        if filled + size <= most:
            taken.append(name)
            filled += size
    return taken, filled


def survivors_of(rows: pl.DataFrame, highest_first: bool = True) -> Survivors:
    """What is left at evenly spaced thresholds: above each, or below it where a lower score is better."""
    scored = rows.filter(pl.col("score").is_finite()).sort("score", descending=highest_first)
    if scored.is_empty():
        return Survivors([], [], [], [])
    ascending = scored["score"].sort()
    low, high = float(ascending[0]), float(ascending[-1])
    thresholds = [low + (high - low) * place / (POSITIONS - 1) for place in range(POSITIONS)]
    # Rounding must not take the highest away.
    thresholds[-1] = high
    places = ascending.search_sorted(pl.Series(thresholds), side="left" if highest_first else "right").to_list()
    left = [len(scored) - place if highest_first else place for place in places]
    # A release does not say tokens; of a pool all or none are known, but for samples that could not be measured.
    characters = "response" in rows.columns and rows["response_tokens"].null_count() > 0
    lengths = scored["response"].str.len_chars() if characters else scored["response_tokens"]
    sums = [[0, *one.fill_null(0).cast(pl.Int64).cum_sum().to_list()] for one in (scored["n_steps"], lengths)]
    steps, length = ([total[count] for count in left] for total in sums)
    return Survivors(thresholds, left, steps, length, "characters" if characters else "tokens")


def why_column(shown: pl.DataFrame, selection: HeldSelection, workspace: Workspace, subset: Subset) -> pl.Series:
    """Of every row why it was chosen, or why not."""
    score = workspace.settings.score(subset.score)
    with_chosen = set(selection.pool.filter("selected")["prompt_id"])
    selector = selector_of(workspace, subset)
    by_score_alone = selector.kind == "top" and not subset.stratify
    passing = shown.with_columns(passing=passes(subset.filters))["passing"].fill_null(value=False)
    last = selection.rows["score"][-1] if len(selection.rows) else None
    said = []
    for row, passed in zip(shown.iter_rows(named=True), passing, strict=True):
        if row["selected"]:
            said.append(row["reason"])
        elif row["n_steps"] is None or row["n_steps"] < score.min_steps:
            said.append(f"not eligible: {row['n_steps'] or 0} steps, and {score.name} asks for {score.min_steps}")
        elif not passed:
            said.append(f"not eligible: the filters of {subset.name} leave it out")
        elif row["score"] is None:
            said.append(f"not chosen: {score.name} has no value, see its flags")
        elif by_score_alone:
            said.append(f"not chosen: the last that was has {score.name} = {_rounded(last)}")
        elif row["prompt_id"] in with_chosen:
            said.append("not chosen: other responses to its prompt were")
        else:
            strata = f" within its {', '.join(subset.stratify)}" if subset.stratify else ""
            said.append(f"not chosen: selector {selector.kind} took others before it{strata}")
    return pl.Series("why", said, dtype=pl.String)


def _rounded(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "–"


def _flags(workspace: Workspace, target: str, ids: pl.Series) -> pl.DataFrame:
    scan = workspace.warehouse.scan(tables.sample_scores_dir(target))
    table = tables.SAMPLE_SCORES.empty().lazy() if scan is None else scan
    return (
        table.select("sample_id", "flags")
        .filter(pl.col("sample_id").is_in(ids.implode()))
        .unique("sample_id", keep="first")
        .collect()
    )


def _prompt_turns() -> pl.Expr:
    """A release's messages end in the response; these are the turns before it."""
    messages = pl.col("messages")
    return messages.list.head(messages.list.len() - 1)
