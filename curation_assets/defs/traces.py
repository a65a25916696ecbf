"""The asset of the viewer stage: a page of traces, made on request from the launchpad."""

from typing import Any

import dagster as dg
from pydantic import Field

from curation_assets import tables
from curation_assets.defs.asset_metadata import OWNERS, facts_table, finite
from curation_assets.defs.subsets import subset_key
from curation_assets.releases.trace_images import subset_pictures
from curation_assets.releases.trace_page import page_text
from curation_assets.releases.traces import MOST_TRACES, compared, subset_traces
from curation_assets.subsets.stored_tables import pick
from curation_assets.workspace.workspace import Workspace
from curation_resources.plots import histogram

TRACES_KEY = dg.AssetKey(["reports", "traces"])


class TracesConfig(dg.Config):
    """Selects the traces on the page."""

    subset: str | None = Field(None, description="the subset whose pool is shown; optional if there is only one")
    beside: str | None = Field(None, description="another subset to compare with")
    most: int = Field(MOST_TRACES, description="maximum traces on the page; beyond that, whole prompts are sampled")
    raw: bool = Field(False, description="colour steps by the score itself at first, not adjusted for their position")


def trace_assets(workspace: Workspace) -> list[dg.AssetsDefinition]:
    """Return the page of traces, if the configuration has subsets."""
    subsets = [subset_key(subset) for subset in workspace.settings.subsets]
    if not subsets:
        return []

    @dg.asset(
        key=TRACES_KEY,
        deps=subsets,
        group_name="reports",
        description="One page of a subset's traces that works offline: steps coloured by score, the reason for each "
        "choice, search, filters and a threshold (choose the subset in the launchpad). The same as `curate report`.",
        owners=OWNERS,
        kinds={"html"},
    )
    def traces(config: TracesConfig, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult[Any]:
        names = [subset.name for subset in workspace.settings.subsets]
        name = pick("subset", config.subset, names)
        alone = config.beside is None
        shown = subset_traces(workspace, workspace.settings.subset(name), config.most, chosen_only=not alone)
        if config.beside is not None:
            beside = workspace.settings.subset(pick("subset", config.beside, names))
            shown = compared(shown, subset_traces(workspace, beside, chosen_only=True), config.most)
        path = tables.traces_path(name)
        text = page_text(shown, subset_pictures(workspace), raw=config.raw)
        workspace.warehouse.storage.write(path, text.encode("utf-8"))
        rows = shown.rows
        groups = {
            "shown": finite(rows, "score"),
            "chosen": finite(rows.filter(rows["rank"].is_not_null()), "score"),
        }
        return dg.MaterializeResult(
            metadata={
                "page": dg.MetadataValue.path(workspace.warehouse.storage.shown(path)),
                "traces": len(rows),
                "of": shown.of,
                "bytes": len(text.encode("utf-8")),
                "facts": facts_table(dict(shown.facts)),
                "histogram": dg.MetadataValue.md(histogram(groups, shown.title, shown.score)),
            }
        )

    return [traces]
