"""The landing sensor: add new files as partitions, and report new versions of files and base models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import dagster as dg

from curation_assets.corpus.ingest import accept_listing
from curation_assets.defs.alerts import report_refusals
from curation_assets.defs.checkpoints import base_model_key
from curation_assets.defs.corpus import LANDING_KEY
from curation_assets.defs.partitions import SHARDS
from curation_assets.workspace.fingerprints import base_digest
from curation_assets.workspace.workspace import Workspace
from curation_resources.models.model_files import ModelError
from curation_resources.storage.landing import LandingFile

NEW_PARTITIONS_PER_TICK = 500
DATA_VERSION_TAG = "dagster/data_version"


def observation(key: dg.AssetKey, version: str, partition: str | None = None) -> dg.AssetObservation:
    """Return an observation of upstream data at a version."""
    return dg.AssetObservation(asset_key=key, partition=partition, tags={DATA_VERSION_TAG: version})


def landing_sensor() -> dg.SensorDefinition:
    """Return the sensor that scans the landing area."""

    @dg.sensor(
        name="landing",
        minimum_interval_seconds=15,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Adds a partition for every new file, and reports new versions of files and base models.",
    )
    def landing(context: dg.SensorEvaluationContext, workspace: dg.ResourceParam[Workspace]) -> dg.SensorResult:
        with report_refusals(workspace, "landing"):
            return _look(context, workspace)

    return landing


def _look(context: dg.SensorEvaluationContext, workspace: Workspace) -> dg.SensorResult:
    """Scan once and compare with the last scan."""
    before = json.loads(context.cursor) if context.cursor else {"files": {}, "models": {}}
    accept_listing(workspace)
    look, seen = workspace.landing.files(), before["files"]
    whole = workspace.landing.arrives_whole
    stable = [f for f in look if whole or seen.get(f.name, [None] * 3)[:2] == [f.size, f.modified_ns]]
    digests = workspace.landing.digests(stable)
    known = set(context.instance.get_dynamic_partitions(str(SHARDS.name)))
    new = [f.shard for f in stable if f.shard not in known][:NEW_PARTITIONS_PER_TICK]
    taken = [f for f in stable if f.shard in known or f.shard in new]
    changed = [f for f in taken if seen.get(f.name, [None] * 3)[2] != digests[f.shard]]
    models = before["models"] | _model_versions(context, workspace)
    events = [observation(LANDING_KEY, digests[f.shard], f.shard) for f in changed]
    events += [
        observation(base_model_key(target), models[target.name])
        for target in workspace.settings.targets
        if before["models"].get(target.name) != models.get(target.name)
    ]
    return dg.SensorResult(
        asset_events=events,
        dynamic_partitions_requests=[SHARDS.build_add_request(new)] if new else [],
        cursor=json.dumps({"files": _cursor_files(look, taken, digests), "models": models}),
    )


def _model_versions(context: dg.SensorEvaluationContext, workspace: Workspace) -> dict[str, str]:
    """Return the version of every base model on this machine; log a warning for the others."""
    versions = {}
    for target in workspace.settings.targets:
        try:
            versions[target.name] = base_digest(workspace, target)
        except ModelError as error:
            context.log.warning(str(error))
    return versions


def _cursor_files(
    look: Iterable[LandingFile], taken: Iterable[LandingFile], digests: Mapping[str, str]
) -> dict[str, list[object]]:
    """Return the state that the next scan compares with: size, time and reported version, by file name."""
    reported = {f.name: digests[f.shard] for f in taken}
    return {f.name: [f.size, f.modified_ns, reported.get(f.name)] for f in look}
