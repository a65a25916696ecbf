"""Columns of a release about steps: their positions in the response and their scores."""

from __future__ import annotations

import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Subset
from curation_assets.corpus.ingest import present_shards
from curation_assets.subsets.stored_tables import scores_with_steps
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.digests import bytes_digest, digest

SPAN = pl.Struct({"start": pl.Int64, "end": pl.Int64})
VALUES = {
    "step_scores": "step_score",
    "step_alignments": "answer_alignment",
    "step_consistencies": "trajectory_consistency",
}
"""Columns of a release, with the columns of table step_scores that they come from."""

STEP_COLUMNS: dict[str, pl.DataType] = {
    "step_spans": pl.List(SPAN),
    **dict.fromkeys(VALUES, pl.List(pl.Float64)),
    "answer_span": SPAN,
}


def step_columns(workspace: Workspace, subset: Subset, sample_ids: pl.Series) -> pl.DataFrame:
    """Return the steps of samples, one row per sample: sample_id and STEP_COLUMNS.

    `step_spans` are the steps in order, as characters [start, end) of the response. `step_scores` [K] are their
    scores by the subset's own score, or by the first of a combination that scores steps; `step_alignments` and
    `step_consistencies` [K] are its components. All are null without step scores. `answer_span` is null without an
    answer.
    """
    score = workspace.settings.step_score_of(subset)
    shards = present_shards(workspace)
    wanted = sample_ids.to_frame("sample_id").lazy()
    spans = workspace.warehouse.scan(tables.segmented_steps_dir(), shards)
    named = score.name in scores_with_steps(workspace, score.target)
    scores = workspace.warehouse.scan(tables.step_scores_dir(score.target, score.name), shards) if named else None
    scored = _of(tables.STEP_SCORES.empty().lazy() if scores is None else scores, wanted)
    key = ["sample_id", "step_index"]
    placed = _of(tables.SEGMENTED_STEPS.empty().lazy() if spans is None else spans, wanted)
    joined = placed.join(scored.select(*key, *VALUES.values()), on=key, how="left").sort(key)
    span, is_step = pl.struct("start", "end"), pl.col("step_index") > 0
    grouped = joined.group_by("sample_id").agg(
        span.filter(is_step).alias("step_spans"),
        *(pl.col(column).filter(is_step).alias(name) for name, column in VALUES.items()),
        span.filter(~is_step).first().alias("answer_span"),
        pl.col("step_score").is_not_null().any().alias("scored"),
    )
    whole = grouped.with_columns(pl.when("scored").then(name).alias(name) for name in VALUES).drop("scored")
    typed = whole.with_columns(pl.col(name).cast(dtype) for name, dtype in STEP_COLUMNS.items())
    return wanted.collect().join(typed, on="sample_id", how="left", maintain_order="left")


def steps_digest(rows: pl.DataFrame) -> str:
    """Return the digest of the columns about steps, which can change while the subset does not (another
    segmentation)."""
    return digest("release_steps", bytes_digest(rows.select("sample_id", *STEP_COLUMNS).write_ndjson().encode()))


def _of(scan: pl.LazyFrame, wanted: pl.LazyFrame) -> pl.DataFrame:
    """Return the rows of a table of steps for the wanted samples, each step once."""
    return scan.join(wanted, on="sample_id", how="semi").unique(["sample_id", "step_index"], keep="first").collect()
