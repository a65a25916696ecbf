"""The asset of the audit. No sensor requests it, since it measures."""

from typing import Any

import dagster as dg
import polars as pl
from pydantic import Field

from curation_assets.defs.asset_metadata import OWNERS, column_schema, markdown_table, row_count
from curation_assets.defs.checkpoints import measured_checkpoint_key
from curation_assets.defs.corpus import RAW_CORPUS_KEY
from curation_assets.defs.quality import POOL_KEY
from curation_assets.evaluation.audit_report import settings_of, write_audit
from curation_assets.subsets.audited import LEGEND, explained_of, findings_of, overview_of
from curation_assets.tables.audit import METHOD_AUDIT
from curation_assets.workspace.workspace import Workspace
from curation_resources.plots import intervals

AUDIT_KEY = dg.AssetKey(["reports", "method_audit"])
EVERYTHING = "(everything is measured)"


class AuditConfig(dg.Config):
    """Settings of an audit; omitted values default to the section `audit` of the configuration."""

    samples: int | None = Field(None, description="samples to draw from the pool; default: audit.samples")
    kinds: list[str] = Field([], description="kinds of flaws; empty: audit.kinds")
    budget_minutes: float | None = Field(
        None, description="stop measuring after this many minutes per device; a later audit goes on"
    )


def audit_assets(workspace: Workspace) -> list[dg.AssetsDefinition]:
    """Return the asset of the audit."""
    settings = workspace.settings
    pool = [POOL_KEY] if settings.corpus.filters.any else []
    checkpoints = [measured_checkpoint_key(target) for target in settings.targets]

    @dg.asset(
        key=AUDIT_KEY,
        deps=[RAW_CORPUS_KEY, *pool, *checkpoints],
        group_name="reports",
        description="Measures samples of the pool and flawed twins of them, and says which scores tell them apart for "
        "this model and this corpus. Made only on request: here, or with `curate audit`.",
        metadata=column_schema(METHOD_AUDIT),
        owners=OWNERS,
        kinds={"pytorch", "parquet"},
        pool="gpu",
    )
    def method_audit(config: AuditConfig, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult[Any]:
        made = write_audit(workspace, settings_of(workspace, config.samples, config.kinds), config.budget_minutes)
        metadata: dict[str, Any] = row_count(len(made.table), partitioned=False) | {
            "overview": markdown_table(*overview_of(made.table)),
            "legend": LEGEND,
            "findings": markdown_table(*findings_of(made.table)),
            "explained_by": markdown_table(*explained_of(made.table)),
            "tokens_run": made.tokens,
            "unfinished": made.unfinished or EVERYTHING,
            "skipped_targets": dg.MetadataValue.json(dict(made.skipped)),
        }
        return dg.MaterializeResult(metadata=metadata | _plots(made.table))

    return [method_audit]


def _plots(table: pl.DataFrame) -> dict[str, dg.MetadataValue[Any]]:
    """Return a plot of paired win rates for each target, configured scores first."""
    made: dict[str, dg.MetadataValue[Any]] = {}
    rows = table.filter((pl.col("measure") == "win_rate") & pl.col("configured") & pl.col("value").is_not_null())
    for (target,), own in rows.group_by("target", maintain_order=True):
        values = [
            (f"{score}: {kind}", value, low, high)
            for score, kind, value, low, high in own.select("score", "kind", "value", "low", "high").iter_rows()
        ]
        picture = intervals(
            values, f"{target}: samples above their flawed twins, 95 % intervals", "share of samples", 0.5
        )
        made[f"plot_{target}"] = dg.MetadataValue.md(picture)
    return made
