"""What the last audit says about scores, in rows and in words, for the terminal, releases and pages."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from curation_assets.methods.method import ScoreSection
from curation_assets.tables.audit import method_audit_path
from curation_assets.workspace.fingerprints import checkpoint_digest
from curation_assets.workspace.workspace import Workspace

Rows = list[tuple[object, ...]]

OF_WHAT = "audited"
"""Metadata of the table: by target, the checkpoint and the parameters of each score that was audited."""
MEASURES = {
    "win_rate": "above own twin",
    "auroc": "AUROC",
    "step_auroc": "steps: AUROC",
    "step_rank": "steps: rank",
    "flawed_share": "twins taken",
}
"""The measures that are judged, with their names in tables for people."""
VERDICTS = {
    "separates": "separates",
    "at_chance": "at chance",
    "inverted": "inverted",
    "excluded": "no score",
    "too_few": "too few",
}


def of_what(workspace: Workspace, target: str, scores: list[ScoreSection]) -> dict[str, object]:
    """Return what an audit of a target's scores is valid for: the checkpoint and the scores' parameters."""
    parameters = {score.name: score.model_dump(mode="json") for score in scores}
    return {"checkpoint": checkpoint_digest(workspace, workspace.settings.target(target)), "scores": parameters}


def audit_of(workspace: Workspace, score: ScoreSection) -> pl.DataFrame | None:
    """Return the rows of table `method_audit` about a score; None if it was not audited as it is now.

    An audit counts as long as the target's checkpoint and the score's parameters are those that were audited. Agreement
    with other scores is among the rows, whichever of both it is stored under.
    """
    path = method_audit_path()
    known = json.loads(workspace.warehouse.table_metadata(path).get(OF_WHAT, "{}")).get(score.target)
    if known is None or known["scores"].get(score.name) != score.model_dump(mode="json"):
        return None
    if known["checkpoint"] != checkpoint_digest(workspace, workspace.settings.target(score.target)):
        return None
    rows = workspace.warehouse.read_table(path)
    agrees = (pl.col("measure") == "agreement") & (pl.col("within") == score.name)
    return rows.filter((pl.col("target") == score.target) & ((pl.col("score") == score.name) | agrees))


MARKS = {"separates": " ▲", "inverted": " ▼", "excluded": "no score", "too_few": " ?"}
LEGEND = "▲ separates, ▼ inverted, without a mark: at chance, ?: fewer than 8 pairs, no score: twins are never selected"


def overview_of(table: pl.DataFrame) -> tuple[list[str], Rows]:
    """Return headers and rows of `method_audit`: one row per score, one column per kind of flaw and label.

    Cells are paired win rates, for labels AUROC, for selectors that compare samples the share of twins that they take.
    """
    wanted = {"win_rate": 0, "auroc": 1, "flawed_share": 2}
    rows = table.filter(pl.col("measure").is_in(list(wanted)) & (pl.col("kind") != ""))
    rows = rows.filter((pl.col("within") == "all") | (pl.col("measure") == "flawed_share"))
    kinds = rows["kind"].unique(maintain_order=True).to_list()
    targets = rows["target"].n_unique() > 1
    found: Rows = []
    for (target, score), own in rows.group_by(["target", "score"], maintain_order=True):
        cells: dict[str, str] = {}
        for row in sorted(own.iter_rows(named=True), key=lambda row: -wanted[row["measure"]]):
            value = "" if row["value"] is None else short(row["value"])
            cells[row["kind"]] = f"{value}{MARKS.get(str(row['verdict']), '')}"
        name = str(score) if own["configured"][0] else f"({score})"
        found.append((*([target] if targets else []), name, *(cells.get(kind) for kind in kinds)))
    return [*(["target"] if targets else []), "score", *kinds], found


def findings_of(table: pl.DataFrame) -> tuple[list[str], Rows]:
    """Return headers and rows of `method_audit`: one row per score and kind of flaw or label."""
    judged = table.filter(pl.col("kind") != "")
    shown = [name for name in MEASURES if name in judged["measure"]]
    targets = judged["target"].n_unique() > 1
    headers = [
        *(["target"] if targets else []),
        "score",
        "kind",
        *(MEASURES[name] for name in shown),
        "verdict",
        "pairs",
    ]
    rows: Rows = []
    overall = judged.filter((pl.col("within") == "all") | (pl.col("measure") == "flawed_share"))
    for (target, score, kind), own in overall.group_by(["target", "score", "kind"], maintain_order=True):
        cells = {row["measure"]: row for row in own.iter_rows(named=True)}
        first = next(cells[name] for name in shown if name in cells)
        name = str(score) if first["configured"] else f"({score})"
        values = [with_interval(cells.get(one)) for one in shown]
        rows.append((*([target] if targets else []), name, kind, *values, verdict_of(cells, shown), first["samples"]))
    return headers, rows


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


def verdict_of(cells: dict[str, dict[str, Any]], shown: list[str]) -> str:
    """Return the verdicts of a row in words: that of the first measure, and of others that differ from it."""
    found = {name: VERDICTS[str(cells[name]["verdict"])] for name in shown if name in cells and cells[name]["verdict"]}
    first = next(iter(found.values()), "")
    others = [f"{MEASURES[name]}: {verdict}" for name, verdict in found.items() if verdict != first]
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
