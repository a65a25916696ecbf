"""Render an audit: what it found, what else explains the scores, and advice."""

from __future__ import annotations

import polars as pl
from rich.console import Console

from curation_assets.subsets.audited import LEGEND, explained_of, findings_of, overview_of
from curation_assets.subsets.facts import source_advice
from curation_resources.terminal import simple_table


def advice_of(table: pl.DataFrame) -> list[str]:
    """Return advice about configured scores that mostly tell sources apart."""
    shares = table.filter((pl.col("measure") == "source_share") & pl.col("configured"))
    found = [source_advice(score, share) for score, share in shares.select("score", "value").iter_rows()]
    return [line for line in found if line is not None]


def show_audit(table: pl.DataFrame, console: Console) -> None:
    """Print the results of an audit."""
    title = "share of samples that score above their flawed twin (labels: AUROC); .5 is chance"
    console.print(simple_table(title, *overview_of(table)))
    console.print(LEGEND, style="dim")
    title = "configured scores: 95 % intervals over prompts"
    console.print(simple_table(title, *findings_of(table.filter("configured"))))
    console.print(simple_table("what else explains the scores (Spearman's correlations)", *explained_of(table)))
    if not table["configured"].all():
        console.print("(in parentheses: not configured, computed with defaults)", style="dim")
    for line in advice_of(table):
        console.print(line, style="yellow", highlight=False, soft_wrap=True)
