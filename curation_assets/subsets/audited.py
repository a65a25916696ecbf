"""What the last audit says about scores, in rows and in words, for the terminal, releases and pages."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.corpus.ingest import present_shards
from curation_assets.methods.method import ScoreSection
from curation_assets.methods.registry import method_of
from curation_assets.tables.audit import method_audit_path
from curation_assets.tables.signals import SignalName
from curation_assets.workspace.fingerprints import segmentation_key, signal_fingerprint
from curation_assets.workspace.held_out_files import wanted_validation
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.warehouse import WarehouseError

logger = logging.getLogger("curation")

Rows = list[tuple[object, ...]]

OF_WHAT, ORIGINALS = "audited", "originals"
"""Metadata of the table: by target, what was audited (`of_what`); and the samples that were drawn."""
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


def of_what(
    workspace: Workspace, target: Target, signals: Sequence[SignalName], scores: Sequence[ScoreSection]
) -> dict[str, dict[str, Any]]:
    """Return what an audit of a target's scores is valid for, by part and name.

    These are its signals, the settings of segmentation, the validation sets, and the scores' parameters.
    """
    return {
        "signals": {signal: signal_fingerprint(workspace, target, signal) for signal in signals},
        "steps": {"settings": segmentation_key(workspace)},
        "sets": {name: wanted_validation(workspace, workspace.settings.validation_set(name)) for name in _sets(scores)},
        "scores": {score.name: score.model_dump(mode="json") for score in scores},
    }


def _sets(scores: Sequence[ScoreSection]) -> list[str]:
    return sorted({name for score in scores for name in method_of(score).validation(score)})


def audit_of(workspace: Workspace, score: ScoreSection) -> pl.DataFrame | None:
    """Return the rows of table `method_audit` about a score; None if it was not audited as it is now.

    An audit counts as long as what was audited is what the configuration says: the target's signals, the steps, the
    validation sets and the score's parameters; and as long as half of the audited samples are in the corpus. Agreement
    with other scores is among the rows, whichever of both it is stored under.
    """
    path = method_audit_path()
    facts = workspace.warehouse.table_metadata(path)
    known = json.loads(facts.get(OF_WHAT, "{}")).get(score.target)
    if known is None:
        return None
    target = workspace.settings.target(score.target)
    wanted = of_what(workspace, target, method_of(score).signals(score), [score])
    if any(known.get(part, {}).get(name) != value for part, own in wanted.items() for name, value in own.items()):
        return None
    if not _mostly_present(workspace, json.loads(facts[ORIGINALS])):
        return None
    try:
        rows = workspace.warehouse.read_table(path)
    except WarehouseError as error:
        logger.warning(
            "the audit cannot be read, so nothing is said about it: %s. `curate audit` makes it again.", error
        )
        return None
    agrees = (pl.col("measure") == "agreement") & (pl.col("within") == score.name)
    return rows.filter((pl.col("target") == score.target) & ((pl.col("score") == score.name) | agrees))


def _mostly_present(workspace: Workspace, originals: Sequence[str]) -> bool:
    scan = workspace.warehouse.scan(tables.raw_corpus_dir(), present_shards(workspace))
    if scan is None:
        return False
    wanted = pl.LazyFrame({"sample_id": originals}, schema={"sample_id": pl.String})
    present = scan.select("sample_id").join(wanted, on="sample_id", how="semi").unique().select(pl.len())
    return 2 * int(present.collect(engine="streaming").item()) >= len(originals)


MARKS = {"separates": " ▲", "inverted": " ▼", "excluded": "no score", "too_few": " ?"}
LEGEND = (
    "▲ separates, ▼ inverted, without a mark: at chance, ?: fewer than 8 prompts, no score: twins are never selected"
)


def overview_of(table: pl.DataFrame) -> tuple[list[str], Rows]:
    """Return headers and rows of `method_audit`: one row per score, one column per kind of flaw and label; or turned.

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
    headers = [*(["target"] if targets else []), "score", *kinds]
    if targets or len(found) > len(kinds):
        return headers, found
    # Few scores are easier to read side by side.
    turned: Rows = [(kind, *(row[place] for row in found)) for place, kind in enumerate(kinds, 1)]
    return ["kind", *(str(row[0]) for row in found)], turned


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
        "n",
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
