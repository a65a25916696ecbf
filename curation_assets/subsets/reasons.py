"""The reason why each sample of a pool was or was not selected, as trace pages show it."""

from __future__ import annotations

import polars as pl

from curation_assets.config.settings import Subset, score_title, vectors_named
from curation_assets.methods.combined import Combination
from curation_assets.subsets.eligibility import passes
from curation_assets.subsets.select import selector_of
from curation_assets.subsets.thresholds import NO_VALUE
from curation_assets.workspace.workspace import Workspace


def reasons(shown: pl.DataFrame, pool: pl.DataFrame, workspace: Workspace, subset: Subset) -> pl.Series:
    """Return the reason why each row was or was not selected.

    Args:
        shown: rows of the pool.
        pool: the pool with `rank`, `selected`, `score`, `dropped`, `reason`.
        workspace: the configuration.
        subset: the subset that was selected.
    """
    score = workspace.settings.score_of(subset)
    chosen = pool.filter("selected").sort("rank")
    with_chosen = set(chosen["prompt_id"])
    selector = selector_of(workspace, subset)
    by_score_alone = selector.kind == "top" and not subset.stratify
    passing = shown.with_columns(passing=passes(subset.filters))["passing"].fill_null(value=False)
    last = chosen["score"][-1] if len(chosen) else None
    found = []
    for row, passed in zip(shown.iter_rows(named=True), passing, strict=True):
        if row["selected"]:
            found.append(row["reason"])
        elif row["dropped"] is not None:
            found.append(_dropped(subset, row["dropped"]))
        elif row["n_steps"] is None or row["n_steps"] < score.min_steps:
            found.append(f"not eligible: {row['n_steps'] or 0} steps, but {score.name} requires {score.min_steps}")
        elif not passed:
            found.append(f"not eligible: excluded by the filters of {subset.name}")
        elif row["score"] is None and isinstance(subset.score, Combination):
            parts = " or ".join(subset.score.combine)
            found.append(f"not selected: it lacks a score that {score.name} combines ({parts})")
        elif row["score"] is None:
            found.append(f"not selected: {score.name} has no value, see its flags")
        elif row["may"] is False:
            found.append(f"not selected: it has no {vectors_named(subset.selector)}, whose vectors are compared")
        elif by_score_alone and subset.standardise is not None:
            found.append(f"not selected: others rank higher by z of {score.name} within their source")
        elif by_score_alone:
            found.append(f"not selected: the last selected sample has {score.name} = {_rounded(last)}")
        elif row["prompt_id"] in with_chosen:
            found.append("not selected: other responses to its prompt were")
        else:
            strata = f" within its {', '.join(subset.stratify)}" if subset.stratify else ""
            found.append(f"not selected: selector {selector.kind} preferred others{strata}")
    return pl.Series("why", found, dtype=pl.String)


def _dropped(subset: Subset, dropped: int) -> str:
    """Return why a threshold dropped a sample."""
    number, reason = divmod(dropped, 2)
    threshold = subset.filters.scores[number]
    if reason == NO_VALUE:
        return f"not eligible: it has no {score_title(threshold.score)}"
    return f"not eligible: it does not pass {threshold.title}"


def _rounded(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "–"
