"""Ground truth of a release's prompts, for reinforcement learning: a reference answer, or a right response's answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from curation_assets import tables
from curation_assets.corpus.ingest import present_shards
from curation_assets.releases.step_columns import SPAN
from curation_assets.steps.correctness import same_answer, verdict
from curation_assets.workspace.workspace import Workspace

GIVEN = "the row's answer"
RIGHT = "a response marked right"
UNMARKED = "the response itself, which nothing marks as right or wrong"
ORIGINS = (GIVEN, RIGHT, UNMARKED)
"""Values of the column `ground_truth_from`."""

SIBLING: dict[str, Any] = {
    "prompt_id": pl.String,
    "response": pl.String,
    "answer": pl.String,
    "correct": pl.Boolean,
    "answer_span": SPAN,
}
"""Columns of a row that a ground truth is found in."""

Row = Mapping[str, Any]


def with_ground_truth(frame: pl.DataFrame, siblings: pl.DataFrame | None = None) -> pl.DataFrame:
    """Add `ground_truth` and `ground_truth_from` (ORIGINS); both are null for a row without one.

    A row's truth is its answer field; else the answer of a response to the same prompt that is marked right, its own
    first; else, if nothing marks the row, its own answer. If the answer fields of a prompt differ, they belong to the
    responses, and those of responses that are not marked right are no truth. Neither is the answer field of a row
    marked wrong whose response gives the same answer.

    Args:
        frame: rows of a release, best first.
        siblings: other rows (SIBLING) with the same prompts, from the corpus.
    """
    rows = frame.with_columns(
        pl.lit(None, dtype=dtype).alias(name) for name, dtype in SIBLING.items() if name not in frame.columns
    ).select(*SIBLING)
    by_prompt: dict[str, list[Row]] = defaultdict(list)
    for row in (rows if siblings is None else pl.concat([rows, siblings.select(*SIBLING)])).iter_rows(named=True):
        by_prompt[row["prompt_id"]].append(row)
    right = {prompt: _right_answer(found) for prompt, found in by_prompt.items()}
    claimed = {prompt for prompt, found in by_prompt.items() if _differ(found)}
    truths = [
        _truth(row, right[row["prompt_id"]], claims=row["prompt_id"] in claimed) for row in rows.iter_rows(named=True)
    ]
    return frame.with_columns(
        pl.Series("ground_truth", [text for text, _ in truths], dtype=pl.String),
        pl.Series("ground_truth_from", [origin for _, origin in truths], dtype=pl.String),
    )


def corpus_siblings(workspace: Workspace, prompt_ids: Sequence[str]) -> pl.DataFrame:
    """Return the rows (SIBLING) of the present corpus that are marked right and answer these prompts, by sample_id."""
    shards = present_shards(workspace)
    corpus = workspace.warehouse.scan(tables.raw_corpus_dir(), shards)
    spans = workspace.warehouse.scan(tables.segmented_steps_dir(), shards)
    rows = tables.RAW_CORPUS.empty().lazy() if corpus is None else corpus
    steps = tables.SEGMENTED_STEPS.empty().lazy() if spans is None else spans
    wanted = pl.LazyFrame({"prompt_id": prompt_ids}, schema={"prompt_id": pl.String})
    found = (
        rows.filter("correct")
        .join(wanted, on="prompt_id", how="semi")
        .select("sample_id", "prompt_id", "response", "answer", "correct")
        .unique("sample_id", keep="first")
        .collect()
    )
    answers = steps.filter(pl.col("step_index") == 0).join(found.lazy(), on="sample_id", how="semi")
    answers = answers.unique("sample_id", keep="first").select("sample_id", answer_span=pl.struct("start", "end"))
    return found.join(answers.collect(), on="sample_id", how="left").sort("sample_id").select(*SIBLING)


def _truth(row: Row, right: str | None, *, claims: bool) -> tuple[str | None, str | None]:
    """Return a row's ground truth and its origin; see `with_ground_truth`."""
    wrong, given = row["correct"] is False, row["answer"]
    if given and (row["correct"] or not (claims or (wrong and verdict(row["response"], given)))):
        return given, GIVEN
    own = _found(row) if row["correct"] else None
    if own or right:
        return own or right, RIGHT
    own = None if wrong else given or _found(row)
    return (own, UNMARKED) if own else (None, None)


def _found(row: Row) -> str | None:
    """Return the answer that segmentation found in a response."""
    span = row["answer_span"]
    return None if span is None else row["response"][span["start"] : span["end"]]


def _right_answer(rows: Iterable[Row]) -> str | None:
    """Return the answer of the first response that is marked right and has one."""
    return next((answer for row in rows if row["correct"] and (answer := row["answer"] or _found(row))), None)


def _differ(rows: Iterable[Row]) -> bool:
    """Return whether the answer fields of one prompt's rows differ, so that they belong to the responses."""
    answers = [row["answer"] for row in rows if row["answer"]]
    return any(not same_answer(answers[0], answer) for answer in answers[1:])
