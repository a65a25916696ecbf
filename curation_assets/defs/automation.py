"""Sensors: what is due up to the signals is asked for, and releases where the policy says so.

The scoring sensor is level-triggered: it compares what should be there with what the stored tables say
(`curation_assets.operations.due`), so it cannot lose an update, and its run keys hold both states, so it does not loop
on a failure. Everything after the signals follows by automation conditions (`curation_assets.defs.conditions`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence

import dagster as dg

from curation_assets.config.settings import Subset, Target
from curation_assets.corpus.ingest import present_shards
from curation_assets.defs.alerts import alert_sensors, refusals_told
from curation_assets.defs.checkpoints import perturbation_key_of, warmup_key_of
from curation_assets.defs.corpus import RAW_CORPUS_KEY, REJECTED_ROWS_KEY
from curation_assets.defs.dead_runs import UNFINISHED, bury_dead_runs, killed_runs
from curation_assets.defs.landing_sensor import landing_sensor
from curation_assets.defs.partitions import SHARDS, STAGE_TAG, range_tags, release_key, release_partitions
from curation_assets.defs.placement import placed
from curation_assets.defs.quality import POOL_KEY, SAMPLE_QUALITY_KEY, quality_keys
from curation_assets.defs.releases import release_asset_key
from curation_assets.defs.reports import report_keys
from curation_assets.defs.rescue import rescue_requests
from curation_assets.defs.scores import score_keys, score_manifest_key
from curation_assets.defs.signals import signal_key, signal_keys
from curation_assets.defs.steps import SEGMENTED_STEPS_KEY
from curation_assets.defs.subsets import subset_key
from curation_assets.defs.validation import validation_keys
from curation_assets.operations.due import (
    contiguous_ranges,
    corpus_due,
    manifest_due,
    perturbation_due,
    scores_due,
    signal_due,
    subset_rows,
    validation_due,
    waits_for_pool,
    waits_for_strength,
    warmup_due,
)
from curation_assets.quality.checks import checks_key
from curation_assets.quality.filtered_pool import pool_due, quality_due, wanted_pool
from curation_assets.releases.build import latest_release, next_release
from curation_assets.signals.held_out import validation_state
from curation_assets.signals.perturbation import wants_perturbation
from curation_assets.signals.store import left_out_dir, shard_record_path, signal_dir
from curation_assets.subsets.manifest import build_manifest, manifest_digest
from curation_assets.subsets.select import subset_due, wanted_fingerprint
from curation_assets.tables import pool_path, sample_quality_dir, score_manifest_path
from curation_assets.workspace.fingerprints import (
    checkpoint_digest,
    image_limits_key,
    sigma_path,
    signal_fingerprint,
    warmup_key,
)
from curation_assets.workspace.held_out_files import ValidationSetError
from curation_assets.workspace.limits import today_if_limited, waits_for_tomorrow
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from curation_resources.models.model_files import ModelError
from curation_resources.sections import SignalName
from curation_resources.storage.digests import digest
from curation_resources.storage.read_cache import one_look

CORPUS_KEYS = [RAW_CORPUS_KEY, REJECTED_ROWS_KEY, SEGMENTED_STEPS_KEY]


def without_event(instance: dg.DagsterInstance, key: dg.AssetKey, shards: Iterable[str]) -> list[str]:
    """Shards of which Dagster never saw a materialization: a killed run wrote tables but no event."""
    seen = instance.get_materialized_partitions(key)
    return [shard for shard in shards if shard not in seen]


def lacking_signals(
    workspace: Workspace, instance: dg.DagsterInstance, target: Target, listed: Iterable[str]
) -> dict[SignalName, set[str]]:
    """By signal, where there are any, the shards that lack it, and those listed of which Dagster never saw it.

    Signals that cannot be measured yet, since something that they are measured at is not there, are left out.
    """
    present, listed = present_shards(workspace), list(listed)
    lacking = {
        signal: {
            *signal_due(workspace, target, signal, present),
            *without_event(instance, signal_key(target, signal), listed),
        }
        for signal in target.signals
        if signal_dir(workspace, target, signal) is not None
    }
    return {signal: shards for signal, shards in lacking.items() if shards}


def signals_to_run(lacking: Mapping[SignalName, set[str]], shards: Iterable[str]) -> list[SignalName]:
    """The signals that a run over these shards has to measure: a failure must not fall back on any other."""
    wanted = set(shards)
    return [signal for signal, own in lacking.items() if own & wanted]


def sensors(workspace: Workspace) -> list[dg.SensorDefinition]:
    """All sensors of a configuration, running by default."""
    made = [landing_sensor(), _scoring_sensor(workspace), _automation_sensor(), *alert_sensors(workspace)]
    if workspace.settings.releases.policy == "on_change":
        made += [_release_sensor(subset) for subset in workspace.settings.subsets]
    return made


def _automation_sensor() -> dg.SensorDefinition:
    return dg.AutomationConditionSensorDefinition(
        "automation",
        target=dg.AssetSelection.all(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=15,
        description="Carries new signals on to scores, manifests and subsets.",
    )


def _scoring_sensor(workspace: Workspace) -> dg.SensorDefinition:
    targets = workspace.settings.targets
    keys = [*CORPUS_KEYS, *(key for target in targets for key in signal_keys(target))]
    keys += quality_keys(workspace.settings.corpus.filters)
    keys += [key for target in targets for key in (*score_keys(workspace, target), score_manifest_key(target))]
    keys += [subset_key(subset) for subset in workspace.settings.subsets]
    keys += report_keys(workspace)
    keys += [key for target in targets for key in validation_keys(workspace, target)]
    keys += [warmup_key_of(target) for target in targets if target.warmup != "none"]
    keys += [perturbation_key_of(target) for target in targets if wants_perturbation(target)]

    @dg.sensor(
        name="scoring",
        target=dg.AssetSelection.assets(*keys),
        minimum_interval_seconds=15,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Asks for shards that are not read, or not measured under the wanted fingerprint; and for scores "
        "and subsets that are due, but that nothing has asked for in a while.",
    )
    def scoring(
        context: dg.SensorEvaluationContext, workspace: dg.ResourceParam[Workspace]
    ) -> dg.SensorResult | dg.SkipReason:
        bury_dead_runs(context.instance)
        unfinished = context.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
        stages = {run.tags[STAGE_TAG] for run in unfinished if STAGE_TAG in run.tags}
        if stages:
            return dg.SkipReason(f"runs in progress: {', '.join(sorted(stages))}")
        with refusals_told(workspace, "scoring"), one_look():
            requests, reasons = scoring_requests(workspace, context.instance)
            waiting: dict[str, float] = {}
            if not unfinished:
                # Also beside other requests: one that fails for good is made at every tick, and launched at none.
                before = json.loads(context.cursor) if context.cursor else {}
                late, waiting = rescue_requests(workspace, context.instance, before, time.time())
                requests += late
        context.update_cursor(json.dumps(waiting))
        if not requests:
            return dg.SkipReason("; ".join(dict.fromkeys(reasons)) or "nothing is due")
        return dg.SensorResult(run_requests=placed(workspace, requests))

    return scoring


def scoring_requests(workspace: Workspace, instance: dg.DagsterInstance) -> tuple[list[dg.RunRequest], list[str]]:
    """Runs that bring shards up to their signals, and why some target has to wait.

    A range that has to be read anew is measured in the same run, if the target's checkpoint is there. Not where runs
    that measure are placed apart (`engine.run_tags`): a GPU would wait while files are read.
    """
    keys = list(instance.get_dynamic_partitions(str(SHARDS.name)))
    longest = workspace.settings.engine.shards_per_run
    digests = workspace.landing.digests(f for f in workspace.landing.settled(wait=False) if f.shard in set(keys))
    to_read = corpus_due(workspace, digests)
    for corpus_key in CORPUS_KEYS:
        to_read += [s for s in without_event(instance, corpus_key, digests) if s not in to_read]
    ready, reasons = _ready_targets(workspace)
    resting = waits_for_tomorrow(workspace.settings.limits, workspace.warehouse)
    apart = bool(workspace.settings.engine.run_tags)
    requests = []
    for shards in contiguous_ranges(to_read, keys, longest):
        measured = [t for t in workspace.settings.targets if ready.get(t.name) and not resting and not apart]
        selection = CORPUS_KEYS + [key for target in measured for key in signal_keys(target)]
        state = [(shard, digests[shard], ready) for shard in shards]
        killed = killed_runs(instance, "corpus", RAW_CORPUS_KEY, range_tags(shards))
        run_key = digest("corpus", state, _stored(workspace, shards), killed)
        requests.append(_request("corpus", selection, shards, run_key))
    if to_read:
        return requests, []
    try:
        quality = _quality_requests(workspace, instance, digests, keys)
    except UserError as error:
        # A benchmark file that is gone must not stop measuring; the subsets wait for it.
        quality, reasons = [], [*reasons, str(error)]
    # Measuring goes on beside a check that fails; warm-ups and subsets wait for the pool by themselves.
    requests += quality
    for target in workspace.settings.targets:
        if target.name in ready:
            try:
                found, waiting = _target_requests(workspace, instance, target, digests, keys)
            except ValidationSetError as error:
                # One target's validation set that is gone must not stop the other targets.
                found, waiting = [], [str(error)]
            requests += found
            reasons += waiting
    return requests, reasons


def _quality_requests(
    workspace: Workspace, instance: dg.DagsterInstance, digests: Mapping[str, str], keys: Sequence[str]
) -> list[dg.RunRequest]:
    """What the corpus' filters need now that every shard is read: checks of shards, then the pool."""
    if not workspace.settings.corpus.filters.any:
        return []
    present = present_shards(workspace)
    due = quality_due(workspace, present)
    due += [s for s in without_event(instance, SAMPLE_QUALITY_KEY, digests) if s not in due]
    checks = checks_key(workspace)
    stored = workspace.warehouse.folder_metadata(sample_quality_dir())
    requests = []
    for shards in contiguous_ranges(due, keys, workspace.settings.engine.shards_per_run):
        # The footers say when they were written, so that going back and forth is asked for each time.
        state = [(shard, digests.get(shard), stored.get(shard)) for shard in shards]
        killed = killed_runs(instance, "quality", SAMPLE_QUALITY_KEY, range_tags(shards))
        requests.append(_request("quality", [SAMPLE_QUALITY_KEY], shards, digest("quality", checks, state, killed)))
    unseen = instance.get_latest_materialization_event(POOL_KEY) is None
    if not due and (unseen or pool_due(workspace, present)):
        run_key = digest(
            "pool", unseen, wanted_pool(workspace, present), workspace.warehouse.table_metadata(pool_path())
        )
        requests.append(dg.RunRequest(run_key=run_key, asset_selection=[POOL_KEY], tags={STAGE_TAG: "pool"}))
    return requests


def _ready_targets(workspace: Workspace) -> tuple[dict[str, list[str]], list[str]]:
    """Wanted fingerprints of every target whose model is here, and what is wrong.

    None where not all signals can be measured yet: a warm-up, or the strength of a perturbation, is not there.
    """
    ready: dict[str, list[str]] = {}
    reasons: list[str] = []
    for target in workspace.settings.targets:
        try:
            wanted = [signal_fingerprint(workspace, target, signal) for signal in target.signals]
            ready[target.name] = [] if None in wanted else list(map(str, wanted))
        except ModelError as error:
            reasons.append(str(error))
    return ready, reasons


def _target_requests(
    workspace: Workspace,
    instance: dg.DagsterInstance,
    target: Target,
    digests: Mapping[str, str],
    keys: Sequence[str],
) -> tuple[list[dg.RunRequest], list[str]]:
    """What one target needs now that every shard is read: warm-up, signals, then the manifest of its scores.

    Once the day's allowance is spent, only what measures nothing.
    """
    resting = waits_for_tomorrow(workspace.settings.limits, workspace.warehouse)
    today = today_if_limited(workspace.settings.limits)
    if warmup_due(workspace, target):
        request = _once(instance, "warmup", warmup_key_of(target), [warmup_key(workspace, target), sorted(digests)])
        return ([], [resting]) if resting else ([request], [])
    waiting = waits_for_pool(workspace, target)
    if waiting:
        return [], [waiting]
    if perturbation_due(workspace, target):
        searched = [sigma_path(workspace, target), sorted(digests)]
        request = _once(instance, "perturbation", perturbation_key_of(target), searched)
        return ([], [resting]) if resting else ([request], [])
    reasons = [reason for reason in [waits_for_strength(workspace, target)] if reason is not None]
    validation = validation_keys(workspace, target)
    unseen = any(instance.get_latest_materialization_event(key) is None for key in validation)
    if unseen or validation_due(workspace, target):
        state = [*validation_state(workspace, target), today]
        run_key = digest("validation", target.name, unseen, checkpoint_digest(workspace, target), state)
        request = dg.RunRequest(run_key=run_key, asset_selection=validation, tags={STAGE_TAG: "validation"})
        return ([], [resting]) if resting else ([request], [])
    # All that lack together: of each sample the run measures what is missing, in one pass.
    lacking = lacking_signals(workspace, instance, target, digests)
    due = sorted({shard for shards in lacking.values() for shard in shards})
    if due and resting:
        return [], [resting]
    wanted = [image_limits_key(workspace, target), today]
    requests = []
    for shards in contiguous_ranges(due, keys, workspace.settings.engine.shards_per_run):
        asked = signals_to_run(lacking, shards)
        measured_at = [signal_fingerprint(workspace, target, signal) for signal in asked]
        selection = [signal_key(target, signal) for signal in asked]
        # What is killed before its first part is stored is asked for again, too.
        killed = killed_runs(instance, "signals", selection[0], range_tags(shards))
        state_of_run: list[object] = [wanted, asked, measured_at, shards, _recorded(workspace, target, shards), killed]
        run_key = digest("signals", target.name, state_of_run)
        requests.append(_request("signals", selection, shards, run_key))
    if not due and not scores_due(workspace, target) and manifest_due(workspace, target):
        manifest = manifest_digest(build_manifest(workspace, target))
        stored = workspace.warehouse.table_metadata(score_manifest_path(target.name))
        run_key = digest("manifest", target.name, manifest, stored)
        tags = {STAGE_TAG: "manifest"}
        requests.append(dg.RunRequest(run_key=run_key, asset_selection=[score_manifest_key(target)], tags=tags))
    return requests, reasons


def _once(instance: dg.DagsterInstance, stage: str, key: dg.AssetKey, state: Sequence[object]) -> dg.RunRequest:
    """A run that leaves nothing to go by until it is done: asked for once, and again if it was killed."""
    run_key = digest(stage, key.to_user_string(), list(state), killed_runs(instance, stage, key))
    return dg.RunRequest(run_key=run_key, asset_selection=[key], tags={STAGE_TAG: stage})


def _recorded(workspace: Workspace, target: Target, shards: Sequence[str]) -> list[object]:
    """What is stored of a target's signals.

    Parts count, so that a killed run is asked for again once it has measured something, and the shards' records
    as they were written, so that going back to former settings for the second time is asked for, too.
    """
    limits = image_limits_key(workspace, target)
    recorded: list[object] = []
    for signal in target.signals:
        folder = signal_dir(workspace, target, signal) or ""
        recorded += [workspace.warehouse.names(place) for place in (folder, left_out_dir(folder, limits))]
        recorded += [workspace.warehouse.read_json(shard_record_path(folder, shard)) for shard in shards]
    return recorded


def _stored(workspace: Workspace, shards: Sequence[str]) -> list[dict[str, str]]:
    return [workspace.warehouse.table_metadata(f"corpus/raw_corpus/{shard}.parquet") for shard in shards]


def _request(stage: str, selection: list[dg.AssetKey], shards: Sequence[str], run_key: str) -> dg.RunRequest:
    return dg.RunRequest(run_key=run_key, asset_selection=selection, tags={STAGE_TAG: stage, **range_tags(shards)})


def _release_sensor(subset: Subset) -> dg.SensorDefinition:
    # One sensor a subset: assets of different partition sets cannot share a sensor's job.
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
            return dg.SkipReason(f"release {number} has this content")
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
