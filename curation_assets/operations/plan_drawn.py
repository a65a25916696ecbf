"""What a training run would be trained on, and whether one is due, by what a plan knows of the pool."""

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
    """Whether the target wants a training run that has not been."""
    return target.warmup != "none" and warmup_checkpoint(workspace, target) is None


def trains_anew(workspace: Workspace, target: Target, pool: Pool) -> bool:
    """Whether the target's run is trained once more, as the pool has grown, and its signals measured anew."""
    return grown_pool(workspace, target, drawable(workspace, pool)[0]) is not None


def drawable(workspace: Workspace, pool: Pool) -> tuple[int, int]:
    """Samples of text, which a warm-up may be drawn from, and samples with images, which it may not.

    What filters are known to leave out is not among them; what has not been held against them is.
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
    """Samples that the target's run is trained on, or would be."""
    if target.warmup == "none":
        return 0
    if target.warmup.release is not None:
        return release_rows_of(workspace, target.warmup.release) or 0
    return ceil_share(Fraction(str(target.warmup.fraction)), drawable(workspace, pool)[0])


def waiting_for(workspace: Workspace, target: Target, pool: Pool) -> str | None:
    """What a target's run waits for before it can be trained."""
    assert target.warmup != "none"
    waiting = waits_for_others(workspace, target)
    if waiting is not None or target.warmup.release is not None:
        return waiting
    return too_few_of(target, *drawable(workspace, pool))
