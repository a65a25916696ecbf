"""What is due: wanted fingerprints against what the stored tables say.

Level-triggered: nothing here remembers events, so no update can be lost and no failure loops by itself.
The scoring sensor asks for the part up to the signals, `curate run` for all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from curation_assets import tables
from curation_assets.config.settings import Subset, Target
from curation_assets.corpus.ingest import present_shards
from curation_assets.methods.registry import method_of
from curation_assets.operations.report_comparison import wanted_comparison
from curation_assets.operations.report_preference import wanted_preference
from curation_assets.operations.report_spectra import wanted_spectra
from curation_assets.signals.held_out import sets_due, validation_key
from curation_assets.signals.perturbation import sigma_due, wants_perturbation
from curation_assets.signals.store import SignalStore, input_fingerprints, record_holds, shard_records, signal_dir
from curation_assets.signals.warmup import grown_pool, too_few, warmup_checkpoint
from curation_assets.subsets.manifest import build_manifest, manifest_digest
from curation_assets.workspace.fingerprints import (
    corpus_fingerprint,
    image_limits_key,
    scored_signals_fingerprint,
    shard_scores_fingerprint,
    sigma_of,
    steps_fingerprint,
)
from curation_assets.workspace.purge_list import PurgedList
from curation_assets.workspace.workspace import Workspace
from curation_resources.sections import SignalName


def corpus_due(workspace: Workspace, content_digests: Mapping[str, str]) -> list[str]:
    """Shards whose `raw_corpus`, `rejected_rows` or `segmented_steps` is missing or of other content or settings."""
    rejected = workspace.warehouse.folder_metadata(tables.rejected_rows_dir())
    corpus = workspace.warehouse.folder_metadata(tables.raw_corpus_dir())
    steps = workspace.warehouse.folder_metadata(tables.segmented_steps_dir())
    purged = PurgedList.read(workspace.warehouse)
    due = []
    for shard, content in content_digests.items():
        corpus_fp = corpus_fingerprint(workspace, content, purged.ids_of(shard))
        of_corpus, of_steps = corpus.get(shard, {}), steps.get(shard, {})
        if (
            of_corpus.get("fingerprint") != corpus_fp
            or rejected.get(shard, {}).get("fingerprint") != corpus_fp
            or of_steps.get("fingerprint") != steps_fingerprint(workspace, corpus_fp)
            or of_steps.get("images") != of_corpus.get("images")
        ):
            due.append(shard)
    return due


def warmup_due(workspace: Workspace, target: Target) -> bool:
    """Whether the target wants a warm-up that is not there and the pool is large enough to train it, or has grown."""
    if target.warmup == "none":
        return False
    if warmup_checkpoint(workspace, target) is not None:
        return grown_pool(workspace, target) is not None
    return too_few(workspace, target) is None


def waits_for_pool(workspace: Workspace, target: Target) -> str | None:
    """Why a target cannot be measured yet, if its warm-up waits for more samples."""
    if target.warmup == "none" or warmup_checkpoint(workspace, target) is not None:
        return None
    return too_few(workspace, target)


def perturbation_due(workspace: Workspace, target: Target) -> bool:
    """Whether the strength of a target's random perturbation is to be searched for, and can be."""
    if waits_for_pool(workspace, target) is not None or warmup_due(workspace, target):
        return False
    return sigma_due(workspace, target)


def waits_for_strength(workspace: Workspace, target: Target) -> str | None:
    """Why `perturbed_losses` of a target cannot be measured yet, if it is for want of samples to search on."""
    if not wants_perturbation(target) or sigma_of(workspace, target) is not None or sigma_due(workspace, target):
        return None
    return (
        f"target {target.name}: the strength of its random perturbation is searched for on the pool, which is empty as "
        "yet: add traces, look at what corpus.filters leave out, or set perturbation.sigma"
    )


def validation_due(workspace: Workspace, target: Target) -> bool:
    """Whether validation sets that a target's scores look at are to be read or measured, and can be."""
    return signal_dir(workspace, target, target.signals[0]) is not None and bool(sets_due(workspace, target))


def signal_due(workspace: Workspace, target: Target, signal: SignalName, present: Sequence[str]) -> list[str]:
    """Those of the present shards that have no record of this signal being measured under the wanted fingerprint."""
    if signal_dir(workspace, target, signal) is None:
        return []
    store = SignalStore.of(workspace, target, signal)
    inputs = input_fingerprints(workspace, signal)
    limits = image_limits_key(workspace, target)
    parts, records = store.parts(), shard_records(workspace, store.folder)
    return [
        shard
        for shard in present
        if shard in inputs and not record_holds(records.get(shard), inputs[shard], limits, parts)
    ]


def scores_due(workspace: Workspace, target: Target) -> list[str]:
    """Measured shards whose `sample_scores` or `step_scores` are missing or of other signals, left-out samples or
    parameters."""
    signals_fp = scored_signals_fingerprint(workspace, target)
    if signals_fp is None or sets_due(workspace, target):
        return []
    validation = validation_key(workspace, target)
    signals = workspace.settings.signals_of_scores(target)
    records = {signal: shard_records(workspace, signal_dir(workspace, target, signal)) for signal in signals}
    measured_from = {signal: input_fingerprints(workspace, signal) for signal in signals}
    made = [tables.sample_scores_dir(target.name)]
    made += [
        tables.step_scores_dir(target.name, score.name)
        for score in workspace.settings.scores_of(target.name)
        if method_of(score).scores_steps
    ]
    stored = [workspace.warehouse.folder_metadata(folder) for folder in made]
    segmented = input_fingerprints(workspace, "step_gradients")
    limits = image_limits_key(workspace, target)
    due = []
    for shard in present_shards(workspace):
        left_out = []
        for signal, own in records.items():
            record = own.get(shard)
            current = None if record is None else (record["input_fingerprint"], record["image_limits"])
            if record is not None and current == (measured_from[signal].get(shard), limits):
                left_out.append(record["left_out"])
        if len(left_out) < len(signals) or shard not in segmented:
            continue
        wanted = shard_scores_fingerprint(workspace, target, signals_fp, segmented[shard], left_out, validation)
        if any(tables_of.get(shard, {}).get("fingerprint") != wanted for tables_of in stored):
            due.append(shard)
    return due


def manifest_due(workspace: Workspace, target: Target) -> bool:
    """Whether the target's manifest says something else than the stored tables do."""
    if not workspace.warehouse.names(tables.sample_scores_dir(target.name)):
        return False
    stored = workspace.warehouse.table_metadata(tables.score_manifest_path(target.name)).get("fingerprint")
    return stored != manifest_digest(build_manifest(workspace, target))


def comparison_due(workspace: Workspace) -> bool:
    """Whether the comparison of subsets is of others than are stored now."""
    stored = workspace.warehouse.table_metadata(tables.subset_comparison_path()).get("fingerprint")
    made = any(workspace.warehouse.table_metadata(tables.subset_path(s.name)) for s in workspace.settings.subsets)
    return made and stored != wanted_comparison(workspace)


def preference_due(workspace: Workspace) -> bool:
    """Whether the heat map of preferences is of other measurements than are stored now."""
    wanted = wanted_preference(workspace)
    stored = workspace.warehouse.table_metadata(tables.preference_path()).get("fingerprint")
    return wanted is not None and stored != wanted


def spectra_due(workspace: Workspace) -> bool:
    """Whether the report on gradient spectra is of other measurements or scores than are stored now."""
    wanted = wanted_spectra(workspace)
    stored = workspace.warehouse.table_metadata(tables.spectra_by_layer_path()).get("fingerprint")
    return wanted is not None and stored != wanted


def subset_rows(workspace: Workspace, subset: Subset) -> int:
    """How many rows the subset has, of whatever scores; 0 if it has not been made."""
    return int(workspace.warehouse.table_metadata(tables.subset_path(subset.name)).get("rows", 0))


def contiguous_ranges(due: Sequence[str], keys: Sequence[str], longest: int) -> list[list[str]]:
    """Cut due partitions into runs that are contiguous in the order of all keys, none longer than `longest`.

    A ranged Dagster run covers all keys between its ends, so a gap starts another run.
    """
    wanted = set(due)
    ranges: list[list[str]] = []
    previous_due = False
    for key in keys:
        if key in wanted:
            if previous_due and len(ranges[-1]) < longest:
                ranges[-1].append(key)
            else:
                ranges.append([key])
        previous_due = key in wanted
    return ranges
