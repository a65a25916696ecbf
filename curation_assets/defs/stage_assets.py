"""The Dagster side of the stages: which assets each stage makes, and which of them Dagster has a record of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import dagster as dg

from curation_assets.config.settings import Subset, Target
from curation_assets.defs.checkpoints import perturbation_key_of, warmup_key_of
from curation_assets.defs.corpus import RAW_CORPUS_KEY, REJECTED_ROWS_KEY
from curation_assets.defs.partitions import SHARDS
from curation_assets.defs.quality import POOL_KEY, SAMPLE_QUALITY_KEY
from curation_assets.defs.reports import COMPARISON_KEY, PREFERENCE_KEY, SPECTRA_KEY, report_keys
from curation_assets.defs.scores import sample_scores_key, score_keys, score_manifest_key
from curation_assets.defs.signals import signal_key
from curation_assets.defs.steps import SEGMENTED_STEPS_KEY
from curation_assets.defs.subsets import subset_key
from curation_assets.defs.validation import validation_keys
from curation_assets.operations.stages import ALL, Item, Stage, Unrecorded, contiguous_ranges
from curation_assets.signals.perturbation import wants_perturbation
from curation_assets.tables.signals import SignalName
from curation_assets.workspace.workspace import Workspace

CORPUS_KEYS = [RAW_CORPUS_KEY, REJECTED_ROWS_KEY, SEGMENTED_STEPS_KEY]
REPORT_KEYS = {"comparison": COMPARISON_KEY, "preference": PREFERENCE_KEY, "spectra": SPECTRA_KEY}


def asset_keys(
    workspace: Workspace, stage: Stage, item: Item, signals: Sequence[SignalName] | None = None
) -> list[dg.AssetKey]:
    """Return the assets that a stage makes for an item; none if the configuration does not ask for them.

    Args:
        workspace: the configuration.
        stage: the stage.
        item: the target or subset.
        signals: for stage `signals`, those to measure; by default all that the target lists.
    """
    if stage.scope == "target":
        return _target_keys(workspace, stage, cast(Target, item), signals)
    if stage.scope == "subset":
        return [subset_key(cast(Subset, item))]
    if stage.scope == "reports":
        return [key for key in report_keys(workspace) if key == REPORT_KEYS[stage.name]]
    if stage.name == "corpus":
        return CORPUS_KEYS
    checked = workspace.settings.corpus.filters.any
    return [{"quality": SAMPLE_QUALITY_KEY, "pool": POOL_KEY}[stage.name]] if checked else []


def _target_keys(
    workspace: Workspace, stage: Stage, target: Target, signals: Sequence[SignalName] | None
) -> list[dg.AssetKey]:
    match stage.name:
        case "warmup":
            return [warmup_key_of(target)] if target.warmup != "none" else []
        case "perturbation":
            return [perturbation_key_of(target)] if wants_perturbation(target) else []
        case "validation":
            return validation_keys(workspace, target)
        case "signals":
            return [signal_key(target, signal) for signal in (target.signals if signals is None else signals)]
        case "scores":
            return score_keys(workspace, target)
        case _:
            return [score_manifest_key(target)]


def ranges_of(
    workspace: Workspace, instance: dg.DagsterInstance, stage: Stage, outdated: Sequence[str]
) -> list[list[str]]:
    """Group the parts of a stage, one group per run: contiguous ranges of shards, or all of it."""
    if not stage.by_shard:
        return [list(outdated)] if outdated else []
    keys = list(instance.get_dynamic_partitions(str(SHARDS.name)))
    return contiguous_ranges(outdated, keys, workspace.settings.engine.shards_per_run)


def without_event(instance: dg.DagsterInstance, key: dg.AssetKey, shards: Iterable[str]) -> list[str]:
    """Return the partitions that Dagster never saw materialized: a killed run wrote tables but no event."""
    seen = instance.get_materialized_partitions(key)
    return [shard for shard in shards if shard not in seen]


def unrecorded_by(instance: dg.DagsterInstance, workspace: Workspace) -> Unrecorded:
    """Return a function that lists the parts of a stage for which the instance has no materialization event."""

    def unrecorded(stage: Stage, item: Item, parts: Iterable[str], signal: SignalName | None) -> list[str]:
        keys = asset_keys(workspace, stage, item, None if signal is None else [signal])
        if not stage.by_shard:
            unseen = any(instance.get_latest_materialization_event(key) is None for key in keys)
            return [ALL] if unseen else []
        if stage.name == "scores":
            # Tables of step scores are empty if no method scores steps; the sample scores always exist.
            keys = [sample_scores_key(cast(Target, item))]
        found: list[str] = []
        parts = list(parts)
        for key in keys:
            found += [shard for shard in without_event(instance, key, parts) if shard not in found]
        return found

    return unrecorded
