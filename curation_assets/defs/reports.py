"""Assets of the reports stage: comparison of subsets, what-ifs from the launchpad, base models' preferences."""

from collections.abc import Sequence
from typing import Any

import dagster as dg
import polars as pl
from pydantic import Field

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.defs.asset_metadata import OWNERS, column_schema, facts_table, markdown_table, row_count
from curation_assets.defs.conditions import follow_upstream_without_waiting_for
from curation_assets.defs.quality import POOL_KEY
from curation_assets.defs.scores import score_manifest_key
from curation_assets.defs.signals import signal_key
from curation_assets.defs.subsets import subset_key
from curation_assets.operations import report_preference as preference
from curation_assets.operations import report_spectra as spectra
from curation_assets.operations.report_comparison import matrix, write_comparison
from curation_assets.subsets.facts import FUNNEL_COLUMNS, funnel_rows
from curation_assets.subsets.stored_tables import pick
from curation_assets.subsets.what_if import what_if
from curation_assets.workspace.workspace import Workspace
from curation_resources.plots import counted_histogram, curves, heat_map, stacked_bars

COMPARISON_KEY = dg.AssetKey(["reports", "subset_comparison"])
WHAT_IF_KEY = dg.AssetKey(["reports", "what_if"])
SPECTRA_KEY = dg.AssetKey(["reports", "gradient_spectra"])
PREFERENCE_KEY = dg.AssetKey(["reports", "preference"])
MANY_SOURCES = 12


class WhatIfConfig(dg.Config):
    """A change to preview; nothing is stored."""

    subset: str | None = Field(None, description="the subset to change; optional if there is only one")
    changes: list[str] = Field([], description="parameter=value, as in alpha=0.5, method=grape, selector.k=2")
    budget: str | None = Field(None, description="10%, 1000 (samples) or 500000 tokens")
    where: list[str] = Field([], description="thresholds: difficulty >= 3, grape top 50% within prompt")


def report_keys(workspace: Workspace) -> list[dg.AssetKey]:
    """Return the keys of the configured reports that are updated automatically."""
    made = [PREFERENCE_KEY] if preference.measuring_targets(workspace.settings) else []
    made += [SPECTRA_KEY] if spectra.measuring_targets(workspace.settings) else []
    return [*made, COMPARISON_KEY] if workspace.settings.subsets else made


def report_assets(workspace: Workspace) -> list[dg.AssetsDefinition]:
    """Return the configured reports: on subsets if there are any, on likelihoods and spectra if they are measured."""
    targets = preference.measuring_targets(workspace.settings)
    pool = [POOL_KEY] if workspace.settings.corpus.filters.any else []
    made = [_preference_asset(targets, pool)] if targets else []
    if spectra.measuring_targets(workspace.settings):
        made.append(_spectra_asset(workspace, pool))
    subsets = [subset_key(subset) for subset in workspace.settings.subsets]
    return [*made, _comparison_asset(workspace.settings.targets, subsets), _what_if_asset(subsets)] if subsets else made


def _comparison_asset(targets: Sequence[Target], subsets: list[dg.AssetKey]) -> dg.AssetsDefinition:
    manifests = [score_manifest_key(target) for target in targets]

    @dg.asset(
        key=COMPARISON_KEY,
        deps=[*manifests, *subsets],
        group_name="reports",
        description=tables.SUBSET_COMPARISON.meaning,
        metadata=column_schema(tables.SUBSET_COMPARISON),
        owners=OWNERS,
        kinds={"polars", "parquet"},
        # Scores without a subset are compared too, but a target that waits for its warm-up must not block the report.
        automation_condition=follow_upstream_without_waiting_for([*manifests, *subsets]),
    )
    def subset_comparison(workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult[Any]:
        frame = write_comparison(workspace)
        pictures = {
            "overlap": "overlap of subsets (Jaccard index)",
            "baseline": "overlap with as many random and longest samples",
            "rank_correlation": "rank correlation of scores, and with length (Spearman)",
        }
        metadata: dict[str, Any] = row_count(len(frame), partitioned=False)
        for comparison, title in pictures.items():
            values, rows, columns = matrix(frame, comparison)
            # A single subset overlaps with itself alone.
            if values and not (rows == columns and len(rows) == 1):
                metadata[comparison] = dg.MetadataValue.md(heat_map(values, rows, columns, title))
        metadata["composition"] = dg.MetadataValue.md(
            stacked_bars(_shares(frame), "subsets by source", "share of samples")
        )
        shown = frame.filter(pl.col("comparison") != "composition")
        metadata["table"] = markdown_table(shown.columns, shown.head(100).iter_rows())
        return dg.MaterializeResult(metadata=metadata)

    return subset_comparison


def _shares(frame: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Return, by subset, the fractions of the largest sources, with the rest combined."""
    rows = frame.filter(pl.col("comparison") == "composition")
    largest = rows.group_by("right").agg(pl.col("samples").max()).sort("samples", "right", descending=[True, False])
    named = set(largest["right"].head(MANY_SOURCES).to_list())
    shares: dict[str, dict[str, float]] = {}
    for name, source, value in rows.select("left", "right", "value").iter_rows():
        bar, part = shares.setdefault(name, {}), source if source in named else "(others)"
        bar[part] = bar.get(part, 0.0) + value
    return shares


def _what_if_asset(subsets: list[dg.AssetKey]) -> dg.AssetsDefinition:
    @dg.asset(
        key=WHAT_IF_KEY,
        deps=subsets,
        group_name="reports",
        description="Preview another method, parameter or budget from stored signals: enter the change in the "
        "launchpad. Shows how the subset would differ; nothing is stored. The same as `curate select`.",
        owners=OWNERS,
        kinds={"polars"},
    )
    def try_change(config: WhatIfConfig, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult[Any]:
        name = pick("subset", config.subset, [subset.name for subset in workspace.settings.subsets])
        found = what_if(workspace, name, config.changes, config.budget, config.where)
        summary, title = found.selection.summary, f"{found.score.name}: pool and what if"
        groups = {"pool": summary.pool_counts, "what if": summary.selected_counts}
        sources = found.sources()
        return dg.MaterializeResult(
            metadata={
                "subset": name,
                "changes": ", ".join(config.changes) or "(none)",
                "budget": config.budget or "(the subset's)",
                "where": ", ".join(config.where) or "(none)",
                "funnel": markdown_table(FUNNEL_COLUMNS, funnel_rows(found.selection.funnel)),
                "difference": facts_table(found.difference()),
                "choice": facts_table(found.selection.facts()),
                "remarks": "; ".join(found.remarks()) or "(none)",
                "sources": markdown_table(sources.columns, sources.head(50).iter_rows()),
                "histogram": dg.MetadataValue.md(counted_histogram(summary.edges, groups, title, "score")),
            }
        )

    return try_change


def _spectra_asset(workspace: Workspace, pool: list[dg.AssetKey]) -> dg.AssetsDefinition:
    signals = [signal_key(target, spectra.SIGNAL) for target in spectra.measuring_targets(workspace.settings)]
    manifests = [score_manifest_key(target) for target in workspace.settings.targets]

    @dg.asset(
        key=SPECTRA_KEY,
        deps=[*manifests, *signals, *pool],
        group_name="reports",
        description="Gradient spectra over the pool: curves over layers, and their correlation with quality, with and "
        "without length (tables spectra_by_layer, spectra_correlations; arXiv 2504.10766).",
        metadata=column_schema(tables.SPECTRA_BY_LAYER),
        owners=OWNERS,
        kinds={"polars", "parquet"},
        # Scores of any target are correlated, but a target that waits for its warm-up must not block the report.
        automation_condition=follow_upstream_without_waiting_for([*manifests, *signals]),
    )
    def gradient_spectra(workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult[Any]:
        made = spectra.write_spectra(workspace)
        metadata: dict[str, Any] = row_count(len(made.by_layer), partitioned=False)
        pictures = {
            "effective_rank": "effective rank R by depth of the layer",
            "nuclear_norm": "nuclear norm N by depth of the layer",
            "share_of_largest": "R over min(T, d) by depth of the layer",
        }
        for metric, title in pictures.items():
            lines = spectra.curves_by_layer(made.by_layer, metric)
            metadata[metric] = dg.MetadataValue.md(curves(lines, title, "depth (0: first layer, 1: last)", metric))
        for target in made.correlations["target"].unique(maintain_order=True):
            values, rows, columns = spectra.matrix(made.correlations, target)
            title = f"{target}: rank correlation of quality with spectra"
            metadata[f"{target}_correlations"] = dg.MetadataValue.md(heat_map(values, rows, columns, title))
        metadata["table"] = markdown_table(made.by_layer.columns, made.by_layer.head(100).iter_rows())
        return dg.MaterializeResult(metadata=metadata)

    return gradient_spectra


def _preference_asset(targets: list[Target], pool: list[dg.AssetKey]) -> dg.AssetsDefinition:
    signals = [signal_key(target, preference.SIGNAL) for target in targets]

    @dg.asset(
        key=PREFERENCE_KEY,
        deps=[*(score_manifest_key(target) for target in targets), *signals, *pool],
        group_name="reports",
        description=tables.PREFERENCE.meaning,
        metadata=column_schema(tables.PREFERENCE),
        owners=OWNERS,
        kinds={"polars", "parquet"},
        # New likelihoods update it; it does not wait for those of files that disappeared before they were measured.
        automation_condition=follow_upstream_without_waiting_for(signals),
    )
    def preference_heat_map(workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult[Any]:
        frame = preference.write_preference(workspace)
        metadata: dict[str, Any] = row_count(len(frame), partitioned=False)
        pictures = {
            "share_of_generator": "share of each generator's wins by target",
            "share_of_target": "share of each target's prompts by generator",
        }
        for column, title in pictures.items():
            values, rows, columns = preference.matrix(frame, column)
            metadata[column] = dg.MetadataValue.md(heat_map(values, rows, columns, title, "share"))
        metadata["table"] = markdown_table(frame.columns, frame.head(100).iter_rows())
        return dg.MaterializeResult(metadata=metadata)

    return preference_heat_map
