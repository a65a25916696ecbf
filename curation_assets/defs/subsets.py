"""Assets of the subsets stage: one for every subset of the configuration."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from curation_assets import tables
from curation_assets.config.settings import Subset, score_title
from curation_assets.corpus.ingest import refuse_losses
from curation_assets.defs.asset_metadata import (
    OWNERS,
    column_schema,
    facts_table,
    freshness_policy,
    markdown_table,
    row_count,
)
from curation_assets.defs.conditions import FOLLOW_UPSTREAM
from curation_assets.defs.quality import POOL_KEY
from curation_assets.defs.scores import score_manifest_key
from curation_assets.releases.build import latest_release
from curation_assets.releases.manifest import lineage
from curation_assets.subsets.facts import FUNNEL_COLUMNS, MUCH, Selection, funnel_rows, source_advice
from curation_assets.subsets.select import (
    OutdatedScoresError,
    parameters_digest,
    select_into,
    selector_of,
    write_subset,
)
from curation_assets.workspace.workspace import Workspace
from curation_resources.plots import counted_histogram, scatter

AUTOMATION_TAG = "dagster/from_automation_condition"
STRONG_CORRELATION = 0.5
LARGE_DRIFT = 0.25


def subset_key(subset: Subset) -> dg.AssetKey:
    """Return the key of a subset's current rows."""
    return dg.AssetKey(["subsets", subset.name])


def subset_asset(workspace: Workspace, subset: Subset) -> dg.AssetsDefinition:
    """Return the asset of one subset."""
    score = workspace.settings.score_of(subset)
    kind = selector_of(workspace, subset).kind
    budget = ", ".join(f"{name} {value}" for name, value in subset.budget if value is not None)
    deps = [score_manifest_key(workspace.settings.target(name)) for name in workspace.settings.targets_of(subset)]
    deps += [POOL_KEY] if workspace.settings.corpus.filters.any else []
    deps += [subset_key(before) for before in workspace.settings.chain(subset)[:-1][-1:]]
    begins = "the pool" if subset.parent is None else f"subset {subset.parent}"

    key = subset_key(subset)
    checks = [
        dg.AssetCheckSpec("length_correlation", asset=key),
        dg.AssetCheckSpec("score_drift", asset=key),
        dg.AssetCheckSpec("budget_filled", asset=key),
        dg.AssetCheckSpec("source_share", asset=key),
    ]

    # Dagster requires a result for every check of a materialized asset, unless its function can be subset: this one
    # returns nothing when the daemon's run meets scores that are about to be replaced.
    @dg.multi_asset(
        name="__".join(key.path),
        specs=[
            dg.AssetSpec(
                key,
                deps=deps,
                skippable=True,
                group_name="subsets",
                description=f"Selected from {begins} by {score.name} ({score.method}), selector {kind}; "
                f"budget: {budget}.",
                metadata=column_schema(tables.SUBSET),
                owners=OWNERS,
                kinds={"polars", "parquet"},
                code_version=parameters_digest(workspace, subset),
                automation_condition=FOLLOW_UPSTREAM,
                freshness_policy=freshness_policy(workspace.settings.freshness),
            )
        ],
        check_specs=checks,
        can_subset=True,
    )
    def selected(
        context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
    ) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
        refuse_losses(workspace)
        checks_alone = key not in context.selected_asset_keys
        try:
            selection = (
                select_into(workspace, subset, lambda _: None) if checks_alone else write_subset(workspace, subset)
            )
        except OutdatedScoresError as error:
            if AUTOMATION_TAG not in context.run.tags:
                raise
            # A shard has changed since this run was requested; its new scores will request another.
            context.log.warning(f"Not selected for now: {error}")
            return
        if not checks_alone:
            metadata: dict[str, Any] = row_count(selection.summary.selected, partitioned=False) | {
                "facts": facts_table(selection.facts()),
                "funnel": markdown_table(FUNNEL_COLUMNS, funnel_rows(selection.funnel)),
                "lineage": markdown_table(("what", "version"), lineage(workspace, subset)),
                "traces": f"curate report {subset.name}, or materialize reports/traces",
            }
            metadata.update(_shares_right(selection))
            metadata.update(_plots(selection, score.name))
            yield dg.MaterializeResult(
                asset_key=key, data_version=dg.DataVersion(selection.content_digest), metadata=metadata
            )
        results = [
            _length_check(key, selection),
            _drift_check(key, workspace, subset, selection),
            _budget_check(key, selection),
            _source_check(key, subset, selection),
        ]
        asked = {check.name for check in context.selected_asset_check_keys}
        yield from (result for result in results if result.check_name in asked)

    return selected


def _shares_right(selection: Selection) -> dict[str, float]:
    """Return the shares marked right as numbers, which the UI plots over time."""
    facts = selection.facts()
    names = ("share_right_pool", "share_right_selected")
    return {name: float(value) for name in names if (value := facts.get(name)) is not None}


def _plots(selection: Selection, score: str) -> dict[str, dg.MetadataValue[Any]]:
    summary = selection.summary
    groups = {"pool": summary.pool_counts, "selected": summary.selected_counts}
    by_source, points = summary.sources.head(50), summary.points
    length = scatter(
        points["response_tokens"].to_list(), points["score"].to_list(), f"{score} by length", "tokens", score
    )
    shown = counted_histogram(summary.edges, groups, f"{score}: pool and subset", score)
    return {
        "histogram": dg.MetadataValue.md(shown),
        "score_by_length": dg.MetadataValue.md(length),
        "sources": markdown_table(by_source.columns, by_source.iter_rows()),
    }


def _length_check(key: dg.AssetKey, selection: Selection) -> dg.AssetCheckResult:
    facts = selection.facts()
    found = [facts["correlation_with_steps"], facts["correlation_with_tokens"]]
    strong = any(value is not None and abs(value) > STRONG_CORRELATION for value in found)
    return dg.AssetCheckResult(
        asset_key=key,
        check_name="length_correlation",
        passed=not strong,
        severity=dg.AssetCheckSeverity.WARN,
        description="The score should not be a proxy for length: |correlation| at most 0.5.",
        metadata={"with_steps": str(found[0]), "with_tokens": str(found[1])},
    )


def _budget_check(key: dg.AssetKey, selection: Selection) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=key,
        check_name="budget_filled",
        passed=not selection.whole,
        severity=dg.AssetCheckSeverity.WARN,
        description="The budget should be smaller than the choice: otherwise the subset is everything there is.",
        metadata={"selected": selection.summary.selected, "left_out": str(selection.left_out or "(none)")},
    )


def _source_check(key: dg.AssetKey, subset: Subset, selection: Selection) -> dg.AssetCheckResult:
    share = selection.summary.variance_by_source
    advice = source_advice(score_title(subset.score), share, subset.compares_within_sources)
    return dg.AssetCheckResult(
        asset_key=key,
        check_name="source_share",
        passed=advice is None,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"The source should explain at most {MUCH:.0%} of the score's variance, unless the subset is "
        "stratified or standardised by it.",
        metadata={"share": str(share), "advice": advice or "(none)"},
    )


def _drift_check(key: dg.AssetKey, workspace: Workspace, subset: Subset, selection: Selection) -> dg.AssetCheckResult:
    latest = latest_release(workspace, subset)
    before = None if latest is None else latest.manifest["score_distribution"]
    now = selection.score_distribution()
    shift = None
    if before is not None and before["std"] and now["mean"] is not None:
        shift = abs(now["mean"] - before["mean"]) / before["std"]
    return dg.AssetCheckResult(
        asset_key=key,
        check_name="score_drift",
        passed=shift is None or shift <= LARGE_DRIFT,
        severity=dg.AssetCheckSeverity.WARN,
        description="The pool's mean score should move by at most a quarter of a standard deviation between releases.",
        metadata={"shift_in_standard_deviations": str(shift), "now": now, "last_release": before or "(none)"},
    )
