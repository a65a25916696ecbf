"""Sensors: they observe the landing area, request runs of outdated stages, and releases if the policy says so.

The scoring sensor is level-triggered: it walks the list of stages (`curation_assets.operations.stages`) and requests
what is outdated, so it cannot lose an update. A run key holds what is wanted, what is stored, and the number of failed
attempts: a failing run is requested again after a pause that grows, not in a loop. A range of shards that failed is
requested in halves, so that one shard does not stop the others. Stages after the signals follow by automation
conditions (`curation_assets.defs.conditions`). A condition requests a run once for each change: if that run is killed,
or a table is lost later, it has nothing to react to. So the sensor also requests such stages once they have been
outdated for a while although nothing runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import dagster as dg

from curation_assets.config.settings import Subset, Target
from curation_assets.corpus.ingest import accept_listing, refuse_losses
from curation_assets.defs.alerts import alert_sensors, report_refusals
from curation_assets.defs.checkpoints import base_model_key
from curation_assets.defs.corpus import LANDING_KEY
from curation_assets.defs.dead_runs import STATE_TAG, UNFINISHED, fail_dead_runs, failed_attempts
from curation_assets.defs.partitions import SHARDS, STAGE_TAG, range_tags, release_key, release_partitions
from curation_assets.defs.placement import placed
from curation_assets.defs.releases import release_asset_key
from curation_assets.defs.stage_assets import asset_keys, ranges_of, unrecorded_by
from curation_assets.operations.stages import (
    Item,
    Stage,
    Survey,
    raise_if_global,
    signals_to_measure,
    stage_named,
    subset_rows,
    walk,
)
from curation_assets.releases.build import latest_release, next_release
from curation_assets.subsets.select import subset_due, wanted_fingerprint
from curation_assets.workspace.fingerprints import base_digest, signal_fingerprint
from curation_assets.workspace.limits import waits_for_tomorrow
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from curation_resources.models.model_files import ModelError
from curation_resources.storage.digests import digest
from curation_resources.storage.landing import LandingFile, file_name, printable
from curation_resources.storage.read_cache import one_look

NEW_PARTITIONS_PER_TICK = 500
MOST_WAITING = 3
"""Failed ranges of a stage that a skip reason names."""

DATA_VERSION_TAG = "dagster/data_version"

PATIENCE_SECONDS = 120.0
"""Time that a stage with an automation condition stays outdated before the sensor requests it. Conditions are evaluated
every 15 seconds, and launching a run takes a while."""


def sensors(workspace: Workspace) -> list[dg.SensorDefinition]:
    """Return all sensors of a configuration, running by default."""
    made = [_landing_sensor(), _scoring_sensor(workspace), _automation_sensor(), *alert_sensors(workspace)]
    if workspace.settings.releases.policy == "on_change":
        made += [_release_sensor(subset) for subset in workspace.settings.subsets]
    return made


def _automation_sensor() -> dg.SensorDefinition:
    return dg.AutomationConditionSensorDefinition(
        "automation",
        target=dg.AssetSelection.all(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=15,
        description="Updates scores, subsets and reports after new signals.",
    )


def _scoring_sensor(workspace: Workspace) -> dg.SensorDefinition:
    keys = dict.fromkeys(key for stage, item in walk(workspace) for key in asset_keys(workspace, stage, item))

    @dg.sensor(
        name="scoring",
        target=dg.AssetSelection.assets(*keys),
        minimum_interval_seconds=15,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Requests shards that are not read, or not measured under the wanted fingerprint, and scores and "
        "subsets that have been outdated for a while although nothing has requested them.",
    )
    def scoring(
        context: dg.SensorEvaluationContext, workspace: dg.ResourceParam[Workspace]
    ) -> dg.SensorResult | dg.SkipReason:
        fail_dead_runs(context.instance)
        unfinished = context.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
        stages = {run.tags[STAGE_TAG] for run in unfinished if STAGE_TAG in run.tags}
        if stages:
            return dg.SkipReason(f"runs in progress: {', '.join(sorted(stages))}")
        with report_refusals(workspace, "scoring"), one_look():
            refuse_losses(workspace)
            requests, reasons = scoring_requests(workspace, context.instance, time.time())
            waiting: dict[str, float] = {}
            if not unfinished:
                # Even next to other requests: a run that always fails is requested at every tick, but not launched.
                before = json.loads(context.cursor) if context.cursor else {}
                late, waiting = rescue_requests(workspace, context.instance, before, time.time())
                requests += late
        context.update_cursor(json.dumps(waiting))
        if not requests:
            return dg.SkipReason("; ".join(dict.fromkeys(reasons)) or "nothing is outdated")
        for reason in dict.fromkeys(reasons):
            context.log.info(reason)
        return dg.SensorResult(run_requests=placed(workspace, requests))

    return scoring


def _survey(workspace: Workspace, instance: dg.DagsterInstance) -> Survey:
    """Return a survey of the landing files that have a partition."""
    known = set(instance.get_dynamic_partitions(str(SHARDS.name)))
    files = [file for file in workspace.landing.settled(wait=False) if file.shard in known]
    return Survey(workspace, workspace.landing.digests(files), unrecorded_by(instance, workspace))


def scoring_requests(
    workspace: Workspace, instance: dg.DagsterInstance, now: float
) -> tuple[list[dg.RunRequest], list[str]]:
    """Return runs that bring shards up to their signals, and the reasons why something has to wait.

    A target whose model or validation set is missing does not stop the others, nor does a missing benchmark file.
    Once the day's allowance is spent, nothing is requested that measures.

    Args:
        workspace: the configuration.
        instance: the Dagster instance.
        now: seconds since 1970.
    """
    survey = _survey(workspace, instance)
    resting = waits_for_tomorrow(workspace.settings.limits, workspace.warehouse)
    requests: list[dg.RunRequest] = []
    reasons: list[str] = []
    for stage, item in walk(workspace):
        if stage.trigger != "sensor" or survey.blocked(stage, item):
            continue
        try:
            outdated = survey.outdated(stage, item)
            notes = [stage.waits(workspace, item), stage.remark(workspace, item)]
        except UserError as error:
            raise_if_global(error)
            reasons.append(str(error))
            continue
        reasons += [note for note in notes if note is not None]
        if outdated and stage.measures and resting:
            reasons.append(resting)
        elif outdated:
            made, waiting = _requests(survey, instance, stage, item, outdated, resting is None, now)
            requests += made
            reasons += waiting
    return requests, reasons


def _requests(
    survey: Survey,
    instance: dg.DagsterInstance,
    stage: Stage,
    item: Item,
    outdated: Sequence[str],
    may_measure: bool,
    now: float,
) -> tuple[list[dg.RunRequest], list[str]]:
    """Return the runs of one stage, and what waits because its run failed."""
    workspace = survey.workspace
    ready = _measurable(workspace) if stage.name == "corpus" and may_measure else {}
    requests: list[dg.RunRequest] = []
    waiting: list[str] = []
    ranges = [(parts, 0) for parts in ranges_of(workspace, instance, stage, outdated)][::-1]
    while ranges:
        parts, depth = ranges.pop()
        selection, state = asset_keys(workspace, stage, item), _state(survey, stage, item, parts)
        if stage.name == "signals" and isinstance(item, Target):
            signals = signals_to_measure(survey.lacking_signals(item), parts)
            selection = asset_keys(workspace, stage, item, signals)
        if stage.name == "corpus":
            selection = [*selection, *(key for keys in ready.values() for key in keys[0])]
            state = [state, {name: keys[1] for name, keys in ready.items()}]
        key = digest(stage.name, "" if item is None else item.name, state)
        attempts = failed_attempts(instance, key)
        pause = attempts.wait(now, depth)
        if attempts.count and not pause and not attempts.killed and stage.by_shard and len(parts) > 1:
            middle = len(parts) // 2
            ranges += [(parts[middle:], depth + 1), (parts[:middle], depth + 1)]
            continue
        if pause:
            what = file_name(parts[0]) if stage.by_shard else selection[0].to_user_string()
            waiting.append(
                f"{stage.name}: {printable(what)} failed (run {attempts.run[:8]}, attempt {attempts.count}) and is "
                f"requested again in {max(1, round(pause / 60))} min"
            )
            continue
        tags = {STAGE_TAG: stage.name, STATE_TAG: key, **(range_tags(parts) if stage.by_shard else {})}
        requests.append(
            dg.RunRequest(run_key=digest(key, attempts.count, attempts.run), asset_selection=selection, tags=tags)
        )
    more = [f"{stage.name}: {len(waiting) - MOST_WAITING} more failed"] if len(waiting) > MOST_WAITING else []
    return requests, waiting[:MOST_WAITING] + more


def _state(survey: Survey, stage: Stage, item: Item, parts: Sequence[str]) -> object:
    """Return the state of a stage's parts, for a run key."""
    return [list(parts) if stage.by_shard else [], stage.state(survey, item, parts)]


def _measurable(workspace: Workspace) -> dict[str, tuple[list[dg.AssetKey], list[str]]]:
    """Return assets and fingerprints of the signals of every target that can be measured now.

    A range that has to be read again is measured in the same run, unless measuring runs are placed separately
    (`engine.run_tags`), since a GPU would be idle while files are read.
    """
    found: dict[str, tuple[list[dg.AssetKey], list[str]]] = {}
    if workspace.settings.engine.run_tags:
        return found
    for target in workspace.settings.targets:
        try:
            wanted = [signal_fingerprint(workspace, target, signal) for signal in target.signals]
        except ModelError:
            # The target's own stages report it.
            continue
        if None not in wanted:
            found[target.name] = asset_keys(workspace, stage_named("signals"), target), list(map(str, wanted))
    return found


def rescue_requests(
    workspace: Workspace, instance: dg.DagsterInstance, waiting: Mapping[str, float], now: float
) -> tuple[list[dg.RunRequest], dict[str, float]]:
    """Return runs of condition stages outdated for `PATIENCE_SECONDS`, and since when each has been outdated.

    If an asset is requested twice, it is made twice within seconds, with the same result.

    Args:
        workspace: the configuration.
        instance: the Dagster instance.
        waiting: the second result of the last call, by run key.
        now: seconds of a clock that keeps running between calls.
    """
    found = _unrequested(workspace, instance)
    since = {str(request.run_key): waiting.get(str(request.run_key), now) for request in found}
    late = [request for request in found if now - since[str(request.run_key)] >= PATIENCE_SECONDS]
    return late, since


def _unrequested(workspace: Workspace, instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    """Return a run for each outdated part of the stages that automation conditions trigger.

    A run key encodes the stored state and the day, so a failing run is requested again once a day, not in a loop.
    """
    survey = _survey(workspace, instance)
    day = datetime.now(UTC).date().isoformat()
    requests = []
    for stage, item in walk(workspace):
        if stage.trigger != "condition" or survey.blocked(stage, item):
            continue
        try:
            outdated = survey.outdated(stage, item)
        except UserError as error:
            raise_if_global(error)
            # A model or file is missing. `scoring_requests` reports it, and stages that need this one are blocked.
            continue
        selection = asset_keys(workspace, stage, item)
        names = [key.to_user_string() for key in selection]
        for parts in ranges_of(workspace, instance, stage, outdated):
            tags = range_tags(parts) if stage.by_shard else {}
            run_key = digest("rescue", day, stage.name, names, tags, stage.state(survey, item, parts))
            tags = {STAGE_TAG: stage.name, **tags}
            requests.append(dg.RunRequest(run_key=run_key, asset_selection=selection, tags=tags))
    return requests


def _release_sensor(subset: Subset) -> dg.SensorDefinition:
    # One sensor per subset: assets with different partition sets cannot share a sensor's job.
    @dg.sensor(
        name=f"release_{subset.name}",
        target=dg.AssetSelection.assets(release_asset_key(subset)),
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Releases {subset.name} when its content differs from its last release (policy: on_change).",
    )
    def release(workspace: dg.ResourceParam[Workspace]) -> dg.SensorResult | dg.SkipReason:
        if subset_due(workspace, subset) or not subset_rows(workspace, subset):
            return dg.SkipReason("the subset is not up to date with its scores")
        number = next_release(workspace, subset)
        latest = latest_release(workspace, subset)
        if latest is not None and latest.number == number:
            return dg.SkipReason(f"release {number} already has this content")
        key = release_key(subset.name, number)
        return dg.SensorResult(
            run_requests=[
                dg.RunRequest(
                    run_key=f"{key} {wanted_fingerprint(workspace, subset)}",
                    asset_selection=[release_asset_key(subset)],
                    partition_key=key,
                )
            ],
            dynamic_partitions_requests=[release_partitions(subset.name).build_add_request([key])],
        )

    return release


def observation(key: dg.AssetKey, version: str, partition: str | None = None) -> dg.AssetObservation:
    """Return an observation of upstream data at a version."""
    return dg.AssetObservation(asset_key=key, partition=partition, tags={DATA_VERSION_TAG: version})


def _landing_sensor() -> dg.SensorDefinition:
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
