"""Everything that Dagster loads. Targets, subsets and their assets come from curation.yaml."""

import dagster as dg

from curation_assets.defs.audit import audit_assets
from curation_assets.defs.checkpoints import checkpoint_assets
from curation_assets.defs.corpus import accept_removals, corpus, landing_files
from curation_assets.defs.evaluation import evaluation_assets
from curation_assets.defs.placement import placed_jobs
from curation_assets.defs.quality import quality_assets
from curation_assets.defs.releases import release_asset
from curation_assets.defs.reports import report_assets
from curation_assets.defs.scores import score_assets
from curation_assets.defs.sensors import sensors
from curation_assets.defs.signals import signal_assets
from curation_assets.defs.steps import segmented_steps
from curation_assets.defs.subsets import subset_asset
from curation_assets.defs.traces import trace_assets
from curation_assets.defs.validation import validation_set_asset, validation_signals_asset
from curation_assets.operations.sql import DuckDBTables
from curation_assets.workspace.workspace import Workspace


def build_definitions(workspace: Workspace) -> dg.Definitions:
    """The definitions of one configuration."""
    settings = workspace.settings
    assets: list[dg.AssetsDefinition | dg.SourceAsset] = [landing_files, corpus, segmented_steps]
    assets += quality_assets(workspace)
    assets += [validation_set_asset(validation) for validation in settings.validation]
    for target in settings.targets:
        assets += checkpoint_assets(target)
        assets += signal_assets(target)
        assets += validation_signals_asset(workspace, target)
        assets += score_assets(workspace, target)
    for subset in settings.subsets:
        assets += [subset_asset(workspace, subset), release_asset(subset)]
    assets += report_assets(workspace)
    assets += trace_assets(workspace)
    assets += audit_assets(workspace)
    assets += evaluation_assets(workspace)
    return dg.Definitions(
        assets=assets,
        sensors=sensors(workspace),
        jobs=[accept_removals, *placed_jobs(workspace)],
        resources={"workspace": workspace, "duckdb": DuckDBTables(workspace)},
        # One process a run: a model is loaded once for the whole range of shards.
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """Return the definitions of the configuration that CURATION_CONFIG names; `dagster dev` calls this."""
    return build_definitions(Workspace.load())
