"""What automation conditions cannot ask for again: scores, subsets and reports whose run was killed or table is gone.

A condition asks once for each change. If the run that it asked for is killed, or a table is lost later, it has nothing
to react to. So the scoring sensor looks at the tables here, too, and asks for what has been due for a while although
nothing runs. Asked for twice, such an asset is made twice in seconds, and is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import dagster as dg

from curation_assets import tables
from curation_assets.config.settings import Subset, Target
from curation_assets.defs.partitions import SHARDS, STAGE_TAG, range_tags
from curation_assets.defs.reports import COMPARISON_KEY, PREFERENCE_KEY, SPECTRA_KEY
from curation_assets.defs.scores import score_keys
from curation_assets.defs.subsets import subset_key
from curation_assets.operations.due import (
    comparison_due,
    contiguous_ranges,
    manifest_due,
    preference_due,
    scores_due,
    spectra_due,
)
from curation_assets.subsets.select import subset_due
from curation_assets.workspace.workspace import Workspace
from curation_resources.models.model_files import ModelError
from curation_resources.storage.digests import digest

PATIENCE_SECONDS = 120.0
"""Conditions are evaluated every 15 seconds, and runs take a while to be launched."""


def rescue_requests(
    workspace: Workspace, instance: dg.DagsterInstance, waiting: Mapping[str, float], now: float
) -> tuple[list[dg.RunRequest], dict[str, float]]:
    """Runs of what has been due for `PATIENCE_SECONDS`, and since when what is due has been so, by run key.

    Args:
        workspace: the configuration.
        instance: where partitions are kept.
        waiting: what the last call gave.
        now: seconds, of any clock that goes on between calls.
    """
    found = _due(workspace, instance)
    since = {str(request.run_key): waiting.get(str(request.run_key), now) for request in found}
    late = [request for request in found if now - since[str(request.run_key)] >= PATIENCE_SECONDS]
    return late, since


def _due(workspace: Workspace, instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    """Everything that conditions own and the tables lack; what rests on something due comes after it."""
    requests: list[dg.RunRequest] = []
    behind = set()
    for target in workspace.settings.targets:
        with _unless_a_model_is_gone():
            # Stays behind if its model is not here: nothing that rests on it can be told to be up to date.
            behind.add(target.name)
            scores = _scores(workspace, instance, target)
            requests += scores
            if not scores and not manifest_due(workspace, target):
                behind.remove(target.name)
    subsets: list[dg.RunRequest] = []
    for subset in workspace.settings.subsets:
        if workspace.settings.score(subset.score).target not in behind:
            with _unless_a_model_is_gone():
                subsets += _subset(workspace, subset)
    if behind or subsets:
        return requests + subsets
    with _unless_a_model_is_gone():
        requests += _reports(workspace)
    return requests


@contextmanager
def _unless_a_model_is_gone() -> Iterator[None]:
    """Go on with what rests on other models; which one is not here, and the mend, the sensor says already."""
    with suppress(ModelError):
        yield


def _subset(workspace: Workspace, subset: Subset) -> list[dg.RunRequest]:
    if not subset_due(workspace, subset):
        return []
    stored = workspace.warehouse.table_metadata(tables.subset_path(subset.name))
    return [_request("subset", [subset_key(subset)], stored)]


def _reports(workspace: Workspace) -> list[dg.RunRequest]:
    reports = []
    if comparison_due(workspace):
        stored = workspace.warehouse.table_metadata(tables.subset_comparison_path())
        reports.append(_request("comparison", [COMPARISON_KEY], stored))
    if preference_due(workspace):
        stored = workspace.warehouse.table_metadata(tables.preference_path())
        reports.append(_request("preference", [PREFERENCE_KEY], stored))
    if spectra_due(workspace):
        stored = workspace.warehouse.table_metadata(tables.spectra_by_layer_path())
        reports.append(_request("spectra", [SPECTRA_KEY], stored))
    return reports


def _scores(workspace: Workspace, instance: dg.DagsterInstance, target: Target) -> list[dg.RunRequest]:
    keys = list(instance.get_dynamic_partitions(str(SHARDS.name)))
    stored = workspace.warehouse.folder_metadata(tables.sample_scores_dir(target.name))
    selection = score_keys(workspace, target)
    return [
        _request("scores", selection, [stored.get(shard, {}) for shard in shards], range_tags(shards))
        for shards in contiguous_ranges(scores_due(workspace, target), keys, workspace.settings.engine.shards_per_run)
    ]


def _request(
    stage: str, selection: list[dg.AssetKey], stored: object, tags: Mapping[str, str] | None = None
) -> dg.RunRequest:
    """A run whose key says what is stored now, and the day: what fails again is asked for once a day, and no loop."""
    names = [key.to_user_string() for key in selection]
    day = datetime.now(UTC).date().isoformat()
    run_key = digest("rescue", day, stage, names, dict(tags or {}), stored)
    return dg.RunRequest(run_key=run_key, asset_selection=selection, tags={STAGE_TAG: stage, **(tags or {})})
