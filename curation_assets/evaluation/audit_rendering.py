"""Render an audit in the terminal and in Markdown: a row per score and kind of flaw, with its verdict."""

from __future__ import annotations

from typing import Any

import polars as pl
from rich.console import Console

from curation_assets.subsets.audited import VERDICTS, source_advice
from curation_resources.terminal import simple_table

Rows = list[tuple[object, ...]]
COLUMNS = {
    "win_rate": "above own twin",
    "auroc": "AUROC",
    "step_auroc": "steps: AUROC",
    "step_rank": "steps: rank",
    "flawed_share": "twins taken",
}
WITHIN = "all"


def findings_of(table: pl.DataFrame) -> tuple[list[str], Rows]:
    """Return headers and rows of `method_audit`: one row per score and kind of flaw or label."""
    judged = table.filter(pl.col("kind") != "")
    shown = [name for name in COLUMNS if name in judged["measure"]]
    targets = judged["target"].n_unique() > 1
    headers = [
        *(["target"] if targets else []),
        "score",
        "kind",
        *(COLUMNS[name] for name in shown),
        "verdict",
        "pairs",
    ]
    rows: Rows = []
    overall = judged.filter(pl.col("within").is_in([WITHIN]) | (pl.col("measure") == "flawed_share"))
    for (target, score, kind), own in overall.group_by(["target", "score", "kind"], maintain_order=True):
        cells = {row["measure"]: row for row in own.iter_rows(named=True)}
        first = next(cells[name] for name in shown if name in cells)
        name = str(score) if first["configured"] else f"({score})"
        values = [with_interval(cells.get(one)) for one in shown]
        rows.append((*([target] if targets else []), name, kind, *values, verdict_of(cells, shown), first["samples"]))
    return headers, rows


def verdict_of(cells: dict[str, dict[str, Any]], shown: list[str]) -> str:
    """Return the verdicts of a row in words: that of the first measure, and of others that differ from it."""
    found = {name: VERDICTS[str(cells[name]["verdict"])] for name in shown if name in cells and cells[name]["verdict"]}
    first = next(iter(found.values()), "")
    others = [f"{COLUMNS[name]}: {verdict}" for name, verdict in found.items() if verdict != first]
    return "; ".join([first, *others])


def with_interval(row: dict[str, Any] | None) -> str | None:
    """Return a value with its interval, such as .85 [.80, .89]."""
    if row is None or row["value"] is None:
        return None
    value = short(row["value"])
    return value if row["low"] is None else f"{value} [{short(row['low'])}, {short(row['high'])}]"


def short(value: float) -> str:
    """Return a share with two digits and without a leading zero, such as .85."""
    return f"{value:.2f}".replace("0.", ".", 1)


def explained_of(table: pl.DataFrame) -> tuple[list[str], Rows]:
    """Return headers and rows: what explains each score, and which other score agrees with it most."""
    headers = ["target", "score", "source explains", "with tokens", "with steps", "agrees most with", "samples"]
    rows: Rows = []
    plain = table.filter((pl.col("kind") == "") & (pl.col("measure") != "agreement"))
    pairs = table.filter((pl.col("measure") == "agreement") & pl.col("value").is_not_null())
    turned = pairs.with_columns(score=pl.col("within"), within=pl.col("score"))
    agreement = pl.concat([pairs, turned]).sort(pl.col("value").abs(), descending=True)
    for (target, score), own in plain.group_by(["target", "score"], maintain_order=True):
        values = dict(own.select("measure", "value").iter_rows())
        share = values.get("source_share")
        mates = agreement.filter((pl.col("target") == target) & (pl.col("score") == score))
        mate = f"{mates['within'][0]} ({mates['value'][0]:+.2f})" if len(mates) else None
        rows.append(
            (
                target,
                score,
                None if share is None else f"{share:.0%}",
                *(None if values.get(one) is None else f"{values[one]:+.2f}" for one in ("tokens", "steps")),
                mate,
                own["samples"].max(),
            )
        )
    return headers, rows


def advice_of(table: pl.DataFrame) -> list[str]:
    """Return advice about configured scores that mostly tell sources apart."""
    shares = table.filter((pl.col("measure") == "source_share") & pl.col("configured"))
    found = [source_advice(score, share) for score, share in shares.select("score", "value").iter_rows()]
    return [line for line in found if line is not None]


def show_audit(table: pl.DataFrame, console: Console) -> None:
    """Print the results of an audit."""
    title = "samples against their flawed twins, and labels: .5 is chance; 95 % intervals over prompts"
    console.print(simple_table(title, *findings_of(table)))
    console.print(simple_table("what else explains the scores (Spearman's correlations)", *explained_of(table)))
    if not table["configured"].all():
        console.print("(in parentheses: not configured, computed with defaults)", style="dim")
    for line in advice_of(table):
        console.print(line, style="yellow", highlight=False, soft_wrap=True)
