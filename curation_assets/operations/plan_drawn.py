"""Decide whether a training run is outdated and which samples it would draw, from what a plan knows of the pool."""

from __future__ import annotations

from fractions import Fraction

import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.methods.apportionment import ceil_share
from curation_assets.operations.plan_pool import Pool
from curation_assets.quality.filtered_pool import stored_pool
from curation_assets.signals.warmup import grown_pool, release_rows_of, too_few_of, waits_for_others, warmup_checkpoint
from curation_assets.workspace.workspace import Workspace


def untrained(workspace: Workspace, target: Target) -> bool:
    """Return whether the target wants a training run that has not been done yet."""
    return target.warmup != "none" and warmup_checkpoint(workspace, target) is None


def trains_anew(workspace: Workspace, target: Target, pool: Pool) -> bool:
    """Return whether the pool has grown so much that the target is retrained and its signals are measured again."""
    return grown_pool(workspace, target, drawable(workspace, pool)[0]) is not None


def drawable(workspace: Workspace, pool: Pool) -> tuple[int, int]:
    """Return the number of text samples, which a warm-up can draw from, and of samples with images, which it cannot.

    Samples known to be removed by filters are not counted; samples not filtered yet are.
    """
    known = pool.known
    if stored_pool(workspace) is not None:
        out = workspace.warehouse.read_table(tables.pool_path()).filter(pl.col("reason").is_not_null())
        known = known.join(out, on="sample_id", how="anti")
    of_text = pl.col("images") == 0
    return (
        round(float(known.filter(of_text)["weight"].sum())),
        round(float(known.filter(~of_text)["weight"].sum())),
    )


def drawn_samples(workspace: Workspace, target: Target, pool: Pool) -> int:
    """Return the number of samples that the target's run is, or would be, trained on."""
    if target.warmup == "none":
        return 0
    if target.warmup.release is not None:
        return release_rows_of(workspace, target.warmup.release) or 0
    return ceil_share(Fraction(str(target.warmup.fraction)), drawable(workspace, pool)[0])


def waiting_for(workspace: Workspace, target: Target, pool: Pool) -> str | None:
    """Return the reason why a target's run cannot be trained yet; None if it can."""
    assert target.warmup != "none"
    waiting = waits_for_others(workspace, target)
    if waiting is not None or target.warmup.release is not None:
        return waiting
    return too_few_of(target, *drawable(workspace, pool))
