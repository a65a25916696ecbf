"""What a page shows: traces of a subset's pool or of a release, each with its steps, scores and why it was chosen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import polars as pl

from curation_assets import tables
from curation_assets.corpus.ingest import corpus_rows
from curation_assets.releases.export import release_frame
from curation_assets.releases.step_columns import STEP_COLUMNS, step_columns
from curation_assets.scores.registry import method_of
from curation_assets.settings import Subset
from curation_assets.subsets.select import Selection, passes, select, selector_of
from curation_assets.workspace import Workspace
from resources.digests import digest
from resources.storage import Storage

MOST_TRACES = 10_000
"""On a page; more are drawn from."""

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
        tokens: of their responses; characters where tokens are not known.
    """

    thresholds: Sequence[float]
    samples: Sequence[int]
    steps: Sequence[int]
    tokens: Sequence[int]


@dataclass(frozen=True)
class Traces:
    """The traces of a page.

    Attributes:
        title: what it shows, as `subset best` or `release best@2`.
        facts: names and values for the head of the page.
        score: name of the score.
        highest_first: whether a higher score is chosen first.
        rows: one a trace, COLUMNS (`rank` is null of what was not chosen); of a comparison also `other_score`,
            `other_rank` and `member` (both, first, second).
        of: how many traces there are, if some were drawn; else that many.
        survivors: of all of them.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    score: str
    highest_first: bool
    rows: pl.DataFrame
    of: int
    survivors: Survivors


def subset_traces(workspace: Workspace, subset: Subset, most: int = MOST_TRACES) -> Traces:
    """The pool of a subset as it would be chosen now: what was chosen, and what was not and why.

    Args:
        workspace: the configuration.
        subset: one of its subsets.
        most: traces on the page; of more whole prompts are drawn, those of chosen traces first.

    Raises:
        SelectionError: there are no scores to choose by.
    """
    selection, score = select(workspace, subset), workspace.settings.score(subset.score)
    pool = selection.pool.join(selection.rows.select("sample_id", "rank", "reason"), on="sample_id", how="left")
    shown = draw_prompts(pool, most)
    highest_first = method_of(score).highest_first
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
        ("selector", selector_of(workspace, subset).kind),
    ]
    title = f"subset {subset.name}"
    of_all = survivors_of(pool, highest_first)
    return Traces(title, facts, score.name, highest_first, rows.select(COLUMNS), len(pool), of_all)


def release_traces(storage: Storage, place: str, most: int = MOST_TRACES) -> Traces:
    """The rows of a release, or of a copy of one.

    Raises:
        ExportError: it is no release, or its files cannot be read.
    """
    frame, manifest = release_frame(storage, place)
    frame = frame.with_columns(
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
    score = parameters["score"]["name"]
    falling = frame.sort("rank")["score"]
    highest_first = len(falling) < 2 or bool(falling[0] >= falling[-1])
    title = f"release {manifest['subset']}@{manifest['number']}"
    rows = draw_prompts(frame, most).select(COLUMNS)
    return Traces(title, facts, score, highest_first, rows, len(frame), survivors_of(frame, highest_first))


def compared(first: Traces, second: Traces, most: int = MOST_TRACES) -> Traces:
    """What either of two has chosen, and which of them: `member` is both, first or second."""
    key = ["sample_id"]
    ours, theirs = (one.rows.filter(pl.col("rank").is_not_null()) for one in (first, second))
    other = theirs.select("sample_id", other_score="score", other_rank="rank")
    left = ours.join(other, on=key, how="left", maintain_order="left")
    only = theirs.join(ours, on=key, how="anti").with_columns(other_score="score", other_rank="rank")
    known = first.rows.select("sample_id", own_score="score")
    only = only.join(known, on=key, how="left", maintain_order="left").with_columns(
        score="own_score", rank=pl.lit(None, dtype=pl.Int64)
    )
    rows = pl.concat([left, only.select(left.columns)], how="vertical_relaxed")
    absent = pl.when(pl.col("rank").is_null()).then(pl.lit("second"))
    member = absent.when(pl.col("other_rank").is_null()).then(pl.lit("first")).otherwise(pl.lit("both"))
    rows = draw_prompts(rows.with_columns(member=member), most)
    counts = dict(rows.group_by("member").len().iter_rows())
    facts = [
        ("first", first.title),
        ("second", second.title),
        (
            "in both / only first / only second",
            " / ".join(f"{counts.get(m, 0):,}" for m in ("both", "first", "second")),
        ),
        *((f"{name} ({one.title})", value) for one in (first, second) for name, value in one.facts[:1]),
    ]
    title = f"{first.title} beside {second.title}"
    return replace(first, title=title, facts=facts, rows=rows, of=len(left) + len(only))


def draw_prompts(rows: pl.DataFrame, most: int) -> pl.DataFrame:
    """Rows of whole prompts until there are so many; those with a chosen row before others, else by their hashes.

    Others get a quarter of the page at least, so that what was not chosen can be seen too.
    """
    if len(rows) <= most:
        return rows.sort("score", descending=True, nulls_last=True, maintain_order=True)
    prompts = rows.group_by("prompt_id").agg(chosen=pl.col("rank").is_not_null().any(), size=pl.len())
    order = pl.Series("order", [digest("viewer", name) for name in prompts["prompt_id"]])
    prompts = prompts.with_columns(order).sort("order")
    groups = {bool(name): group for (name,), group in prompts.group_by("chosen")}
    others = groups.get(False, prompts.clear())
    share = min(int(others["size"].sum()), most // 4)
    chosen = _within(groups.get(True, prompts.clear()), most - share)
    taken = [*chosen["prompt_id"], *_within(others, most - int(chosen["size"].sum()))["prompt_id"]]
    return rows.filter(pl.col("prompt_id").is_in(taken)).sort("score", descending=True, nulls_last=True)


def _within(prompts: pl.DataFrame, most: int) -> pl.DataFrame:
    """Prompts from the first on, while their rows fit."""
    return prompts.filter(pl.col("size").cum_sum() <= most)


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
    characters = rows["response_tokens"].null_count() == len(rows) and "response" in rows.columns
    lengths = scored["response"].str.len_chars() if characters else scored["response_tokens"]
    sums = [[0, *one.fill_null(0).cast(pl.Int64).cum_sum().to_list()] for one in (scored["n_steps"], lengths)]
    return Survivors(thresholds, left, [sums[0][count] for count in left], [sums[1][count] for count in left])


def why_column(shown: pl.DataFrame, selection: Selection, workspace: Workspace, subset: Subset) -> pl.Series:
    """Of every row why it was chosen, or why not."""
    score = workspace.settings.score(subset.score)
    with_chosen = set(selection.pool.filter("selected")["prompt_id"])
    passing = shown.with_columns(passing=passes(subset.filters))["passing"].fill_null(value=False)
    lowest = selection.rows["score"].min() if method_of(score).highest_first else selection.rows["score"].max()
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
        elif row["prompt_id"] in with_chosen:
            said.append("not chosen: other responses to its prompt were")
        else:
            said.append(f"not chosen: the last that was has {score.name} = {_rounded(lowest)}")
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
