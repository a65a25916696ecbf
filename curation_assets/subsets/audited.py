"""What the last audit says about a score, for selections, releases and pages (`curate audit` makes it)."""

from __future__ import annotations

import json

import polars as pl

from curation_assets.methods.method import ScoreSection
from curation_assets.tables.audit import method_audit_path
from curation_assets.workspace.fingerprints import checkpoint_digest
from curation_assets.workspace.workspace import Workspace

OF_WHAT = "audited"
"""Metadata of the table: by target, the checkpoint and the parameters of each score that was audited."""
SHOWN = ("auroc", "win_rate", "step_auroc", "flawed_share")
VERDICTS = {
    "separates": "separates",
    "at_chance": "at chance",
    "inverted": "inverted",
    "excluded": "no score",
    "too_few": "too few",
}
MUCH = 0.2
"""Share of a score's variance from which its source is worth a warning."""


def of_what(workspace: Workspace, target: str, scores: list[ScoreSection]) -> dict[str, object]:
    """Return what an audit of a target's scores is valid for: the checkpoint and the scores' parameters."""
    parameters = {score.name: score.model_dump(mode="json") for score in scores}
    return {"checkpoint": checkpoint_digest(workspace, workspace.settings.target(target)), "scores": parameters}


def audit_of(workspace: Workspace, score: ScoreSection) -> pl.DataFrame | None:
    """Return the rows of table `method_audit` about a score; None if it was not audited as it is now.

    An audit counts as long as the target's checkpoint and the score's parameters are those that were audited.
    """
    path = method_audit_path()
    known = json.loads(workspace.warehouse.table_metadata(path).get(OF_WHAT, "{}")).get(score.target)
    if known is None or known["scores"].get(score.name) != score.model_dump(mode="json"):
        return None
    if known["checkpoint"] != checkpoint_digest(workspace, workspace.settings.target(score.target)):
        return None
    rows = workspace.warehouse.read_table(path)
    return rows.filter((pl.col("target") == score.target) & (pl.col("score") == score.name))


def source_advice(name: str, share: float | None, stratified: bool = False) -> str | None:
    """Return advice about a score that depends on the source; None if it does not, or sources are strata already."""
    if share is None or share <= MUCH or stratified:
        return None
    return (
        f"the source explains {share:.0%} of the variance of score {name}: a selection by it is mostly one of sources. "
        "Set stratify: [source] on the subset"
    )
