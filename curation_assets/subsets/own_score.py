"""Select by a score that a user gives as a Polars expression, without a configured method; nothing is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
from pydantic import ValidationError

from curation_assets import tables
from curation_assets.config.settings import Subset, Target
from curation_assets.corpus.duplicates import resolve_duplicates
from curation_assets.methods.combined import Combination, Combined
from curation_assets.subsets.choose_in_duckdb import POOL_COLUMNS, Beside
from curation_assets.subsets.facts import Selection
from curation_assets.subsets.select import SelectionError, present_rows, select_from
from curation_assets.subsets.stored_tables import TableRequestError, read_stored
from curation_assets.workspace.workspace import Workspace


def select_by(
    workspace: Workspace, target: Target, score: pl.Expr, section: Mapping[str, Any]
) -> tuple[pl.DataFrame, Selection]:
    """Select by an expression; see `curation_assets.project.Project.select_by`.

    Args:
        workspace: the configuration.
        target: whose scores and signals the expression reads, and whose tokens a budget counts.
        score: the expression.
        section: a section of `subsets`; its score's name is the expression's.

    Returns:
        Table `subset` as it would be, and the facts about the selection.

    Raises:
        SelectionError: the expression cannot be evaluated, its result is not one number per sample, or the section is
            not valid.
    """
    try:
        subset = Subset.model_validate(section)
    except ValidationError as error:
        first = error.errors()[0]
        raise SelectionError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if subset.filters.scores:
        raise SelectionError("filters.scores is not supported here. Filter in the expression: pl.when(...).then(...)")
    pool = resolve_duplicates(present_rows(workspace, target)[0])
    rows = _with_signals(workspace, target, pool.rows, score)
    try:
        values = rows.select(score.cast(pl.Float64).alias("score"))["score"]
    except pl.exceptions.PolarsError as error:
        raise SelectionError(
            f"the score cannot be evaluated: {error}. Columns are {', '.join(rows.columns)}"
        ) from error
    if len(values) != len(rows):
        raise SelectionError(
            f"the score has {len(values):,} values for {len(rows):,} samples. Give an expression with one per sample."
        )
    name = str(subset.score)
    named = Combined(name=name, target=target.name, combination=Combination(combine={name: 1.0}))
    pieces = [tables.SUBSET.empty()]
    scored = rows.select(POOL_COLUMNS).with_columns(score=values)
    selection = select_from(workspace, subset, named, [scored], pieces.append, Beside(), pool.duplicates)
    return pl.concat(pieces), selection


def _with_signals(workspace: Workspace, target: Target, rows: pl.DataFrame, score: pl.Expr) -> pl.DataFrame:
    """Add the columns of the target's signals that an expression names, and that have one row per sample."""
    wanted = set(score.meta.root_names()) - set(rows.columns)
    for signal in target.signals:
        if not wanted:
            break
        try:
            stored = read_stored(workspace, signal, target=target.name)
        except TableRequestError:
            continue  # it has not been measured yet
        names = [name for name in stored.collect_schema().names() if name in wanted]
        if names:
            own = stored.select("sample_id", *names).unique("sample_id").collect()
            rows = rows.join(own, on="sample_id", how="left", maintain_order="left")
            wanted -= set(names)
    return rows
