"""The stages of the pipeline, in order: what each one needs, and which part of it is outdated.

The list is level-triggered. A stage compares the fingerprints that the configuration and the data want with those that
the stored tables carry, so no update can be lost and nothing loops on a failure by itself. `curate run`, `curate
measure`, the scoring sensor and the rescue of killed runs all read this list; `curation_assets.defs` attaches Dagster's
assets to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from curation_assets import tables
from curation_assets.config.settings import Subset, Target
from curation_assets.corpus.ingest import present_shards
from curation_assets.methods.registry import method_of
from curation_assets.operations.report_comparison import wanted_comparison
from curation_assets.operations.report_preference import wanted_preference
from curation_assets.operations.report_spectra import wanted_spectra
from curation_assets.quality.checks import checks_key
from curation_assets.quality.filtered_pool import pool_due, quality_due, wanted_pool
from curation_assets.signals.held_out import sets_due, validation_key, validation_state
from curation_assets.signals.perturbation import sigma_due, wants_perturbation
from curation_assets.signals.store import (
    SignalStore,
    input_fingerprints,
    left_out_dir,
    record_holds,
    shard_record_path,
    shard_records,
    signal_dir,
)
from curation_assets.signals.warmup import grown_pool, too_few, warmup_checkpoint
from curation_assets.subsets.manifest import build_manifest, manifest_digest
from curation_assets.subsets.select import subset_due
from curation_assets.tables.signals import SignalName
from curation_assets.workspace.fingerprints import (
    checkpoint_digest,
    corpus_fingerprint,
    image_limits_key,
    scored_signals_fingerprint,
    shard_scores_fingerprint,
    sigma_of,
    sigma_path,
    signal_fingerprint,
    steps_fingerprint,
    warmup_key,
)
from curation_assets.workspace.limits import today_if_limited
from curation_assets.workspace.purge_list import PurgedList
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from curation_resources.storage.landing import LandingError

Scope = Literal["corpus", "target", "subset", "reports"]
"""What a stage is repeated for: stages of the corpus and the reports exist once, the others once an item."""

Item = Target | Subset | None
"""The target or subset that a stage works for; None for stages of the corpus and for reports."""

Trigger = Literal["sensor", "condition"]
"""What starts a stage's runs in the daemon: the scoring sensor, or an automation condition. Each asset has one."""

ALL = "*"
"""The only part of a stage that is not partitioned by shard."""

Unrecorded = Callable[["Stage", Item, Iterable[str], SignalName | None], list[str]]
"""Return those of a stage's parts that the orchestrator has no record of: a killed run wrote tables but no event."""


def _all_recorded(_stage: Stage, _item: Item, _parts: Iterable[str], _signal: SignalName | None) -> list[str]:
    return []


@dataclass(frozen=True)
class Survey:
    """One look at what is outdated.

    Attributes:
        workspace: the configuration and its warehouse.
        digests: content digests of the landing files that have settled, by shard.
        unrecorded: asks the orchestrator about missing events; by default none is missing.
    """

    workspace: Workspace
    digests: Mapping[str, str]
    unrecorded: Unrecorded = _all_recorded
    _found: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _lacking: dict[str, dict[SignalName, set[str]]] = field(default_factory=dict)

    def outdated(self, stage: Stage, item: Item) -> list[str]:
        """Return the outdated parts of a stage: shards, or `[ALL]` if it is not partitioned; empty if it is current.

        Raises:
            UserError: a model or file that decides this is missing.
        """
        key = (stage.name, "" if item is None else item.name)
        if key not in self._found:
            self._found[key] = stage.outdated(self, item)
        return self._found[key]

    def blocked(
        self, stage: Stage, item: Item, ignored: Callable[[Stage, Item], bool] = lambda _stage, _item: False
    ) -> bool:
        """Return True if a stage that this one needs is outdated, waits for more data, or cannot be judged.

        Args:
            stage: the stage.
            item: its item.
            ignored: returns True for a needed stage and item that must not block: one that a run has done already, or
                leaves to another run.
        """
        for need in map(stage_named, stage.needs):
            for other in _items_needed(self.workspace, need, item):
                if ignored(need, other):
                    continue
                try:
                    if self.outdated(need, other) or need.waits(self.workspace, other):
                        return True
                except UserError as error:
                    raise_if_global(error)
                    return True
        return False

    def lacking_signals(self, target: Target) -> dict[SignalName, set[str]]:
        """Return the shards that lack each signal; signals that no shard lacks are left out.

        A signal that cannot be measured yet, because its checkpoint does not exist, is left out too.
        """
        if target.name not in self._lacking:
            present, stage = present_shards(self.workspace), stage_named("signals")
            lacking = {
                signal: {
                    *unmeasured_shards(self.workspace, target, signal, present),
                    *self.missing(stage, target, list(self.digests), signal),
                }
                for signal in target.signals
                if signal_dir(self.workspace, target, signal) is not None
            }
            self._lacking[target.name] = {signal: shards for signal, shards in lacking.items() if shards}
        return self._lacking[target.name]

    def missing(self, stage: Stage, item: Item, parts: Sequence[str], signal: SignalName | None = None) -> list[str]:
        """Return the parts without a record, in order."""
        return self.unrecorded(stage, item, parts, signal)


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline.

    Attributes:
        name: its name, also the tag of its runs.
        scope: what it is repeated for.
        outdated: returns its outdated parts.
        needs: stages that must be current before this one runs.
        by_shard: True if its parts are shards; otherwise its only part is `ALL`.
        measures: True if it runs a model, and so spends the allowance of tokens and device hours.
        trigger: what starts its runs in the daemon.
        waits: returns why it waits for more data, and what to do; None if it does not wait.
            Stages that need it wait too.
        remark: returns what else a person should know; nothing waits for it.
        state: returns what is stored of some parts. A run is requested again only when this has changed.
    """

    name: str
    scope: Scope
    outdated: Callable[[Survey, Any], list[str]]
    needs: tuple[str, ...] = ()
    by_shard: bool = False
    measures: bool = False
    trigger: Trigger = "sensor"
    waits: Callable[[Workspace, Any], str | None] = lambda _workspace, _item: None
    remark: Callable[[Workspace, Any], str | None] = lambda _workspace, _item: None
    state: Callable[[Survey, Any, Sequence[str]], object] = lambda _survey, _item, _parts: None


def raise_if_global(error: UserError) -> None:
    """Re-raise an error that concerns every stage, that is, a refused listing; others stop only the item they name."""
    if isinstance(error, LandingError):
        raise error


def stage_named(name: str) -> Stage:
    """Return a stage by its name.

    Raises:
        KeyError: no stage has this name.
    """
    return _BY_NAME[name]


def items_of(workspace: Workspace, scope: Scope) -> Sequence[Item]:
    """Return the items that stages of a scope are repeated for, in the order in which they are worked on."""
    if scope == "target":
        return workspace.settings.targets
    if scope == "subset":
        return workspace.settings.ordered_subsets
    return [None]


def walk(workspace: Workspace) -> Iterator[tuple[Stage, Item]]:
    """Yield every stage with each of its items, in the order in which they run: item by item within a scope."""
    for scope in SCOPES:
        for item in items_of(workspace, scope):
            for stage in STAGES:
                if stage.scope == scope:
                    yield stage, item


def contiguous_ranges(outdated: Sequence[str], keys: Sequence[str], longest: int) -> list[list[str]]:
    """Cut outdated shards into ranges that are contiguous in the order of all keys, none longer than `longest`.

    A ranged Dagster run covers all keys between its ends, so a gap starts another run.
    """
    wanted = set(outdated)
    ranges: list[list[str]] = []
    previous_outdated = False
    for key in keys:
        if key in wanted:
            if previous_outdated and len(ranges[-1]) < longest:
                ranges[-1].append(key)
            else:
                ranges.append([key])
        previous_outdated = key in wanted
    return ranges


def signals_to_measure(lacking: Mapping[SignalName, set[str]], shards: Iterable[str]) -> list[SignalName]:
    """Return the signals that a run over these shards has to measure. A failure must not affect any other signal."""
    wanted = set(shards)
    return [signal for signal, own in lacking.items() if own & wanted]


def unmeasured_shards(workspace: Workspace, target: Target, signal: SignalName, present: Sequence[str]) -> list[str]:
    """Return the present shards without a record that this signal was measured under the wanted fingerprint."""
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


def waits_for_pool(workspace: Workspace, target: Target, sizes: tuple[int, int] | None = None) -> str | None:
    """Return why a target cannot be measured yet, if its warm-up waits for more samples.

    `sizes` are those of `too_few`, for a plan that also counts files which have not been read.
    """
    if target.warmup == "none" or warmup_checkpoint(workspace, target) is not None:
        return None
    return too_few(workspace, target, sizes)


def waits_for_strength(workspace: Workspace, target: Target) -> str | None:
    """Return why `perturbed_losses` of a target cannot be measured yet, if the search has no samples."""
    if not wants_perturbation(target) or sigma_of(workspace, target) is not None or sigma_due(workspace, target):
        return None
    return (
        f"target {target.name}: the strength of its random perturbation is searched for on the pool, which is still "
        "empty. Add traces, check what corpus.filters remove, or set perturbation.sigma."
    )


def current_shards(workspace: Workspace, digests: Mapping[str, str]) -> list[str]:
    """Return the present shards whose stored `raw_corpus` matches the current content of their files."""
    stored, wanted = workspace.warehouse.folder_metadata(tables.raw_corpus_dir()), _wanted_corpus(workspace, digests)
    return [
        shard
        for shard in present_shards(workspace)
        if shard in wanted and stored.get(shard, {}).get("fingerprint") == wanted[shard]
    ]


def subset_rows(workspace: Workspace, subset: Subset) -> int:
    """Return the number of rows of the stored subset, whatever scores it was selected by; 0 if there is none."""
    return int(workspace.warehouse.table_metadata(tables.subset_path(subset.name)).get("rows", 0))


def _items_needed(workspace: Workspace, need: Stage, item: Item) -> Sequence[Item]:
    """Return the items of a needed stage that an item rests on."""
    if need.scope == "target":
        if isinstance(item, Target):
            return [item]
        if isinstance(item, Subset):
            return [workspace.settings.target(name) for name in workspace.settings.targets_of(item)]
    if need.scope == "subset" and isinstance(item, Subset):
        return workspace.settings.chain(item)[:-1]
    return items_of(workspace, need.scope)


def _with_missing(survey: Survey, stage: str, item: Item, outdated: list[str], parts: Iterable[str]) -> list[str]:
    """Return the outdated parts, then those without a record."""
    missing = survey.missing(stage_named(stage), item, list(parts))
    return outdated + [part for part in missing if part not in outdated]


def _all_if(outdated: bool) -> list[str]:
    return [ALL] if outdated else []


def _wanted_corpus(workspace: Workspace, digests: Mapping[str, str]) -> dict[str, str]:
    """Return the fingerprint that `raw_corpus` of each shard has once its file has been read."""
    purged = PurgedList.read(workspace.warehouse)
    return {shard: corpus_fingerprint(workspace, content, purged.ids_of(shard)) for shard, content in digests.items()}


def _corpus_outdated(survey: Survey, _item: None) -> list[str]:
    """Shards whose `raw_corpus`, `rejected_rows` or `segmented_steps` is missing or has other content or settings."""
    workspace = survey.workspace
    rejected = workspace.warehouse.folder_metadata(tables.rejected_rows_dir())
    corpus = workspace.warehouse.folder_metadata(tables.raw_corpus_dir())
    steps = workspace.warehouse.folder_metadata(tables.segmented_steps_dir())
    outdated = []
    for shard, wanted in _wanted_corpus(workspace, survey.digests).items():
        of_corpus, of_steps = corpus.get(shard, {}), steps.get(shard, {})
        if (
            of_corpus.get("fingerprint") != wanted
            or rejected.get(shard, {}).get("fingerprint") != wanted
            or of_steps.get("fingerprint") != steps_fingerprint(workspace, wanted)
            or of_steps.get("images") != of_corpus.get("images")
        ):
            outdated.append(shard)
    return _with_missing(survey, "corpus", None, outdated, survey.digests)


def _corpus_state(survey: Survey, _item: None, shards: Sequence[str]) -> object:
    stored = survey.workspace.warehouse.folder_metadata(tables.raw_corpus_dir())
    return [(shard, survey.digests[shard], stored.get(shard, {})) for shard in shards]


def _quality_outdated(survey: Survey, _item: None) -> list[str]:
    if not survey.workspace.settings.corpus.filters.any:
        return []
    outdated = quality_due(survey.workspace, present_shards(survey.workspace))
    return _with_missing(survey, "quality", None, list(outdated), survey.digests)


def _quality_state(survey: Survey, _item: None, shards: Sequence[str]) -> object:
    # Footers hold the time of writing, so that going back and forth between settings is requested each time.
    stored = survey.workspace.warehouse.folder_metadata(tables.sample_quality_dir())
    return [checks_key(survey.workspace), [(shard, survey.digests.get(shard), stored.get(shard)) for shard in shards]]


def _pool_outdated(survey: Survey, _item: None) -> list[str]:
    workspace = survey.workspace
    unseen = workspace.settings.corpus.filters.any and survey.missing(stage_named("pool"), None, [ALL])
    return _all_if(bool(unseen) or pool_due(workspace, present_shards(workspace)))


def _pool_state(survey: Survey, _item: None, _parts: Sequence[str]) -> object:
    workspace = survey.workspace
    unseen = bool(survey.missing(stage_named("pool"), None, [ALL]))
    wanted = wanted_pool(workspace, present_shards(workspace))
    return [unseen, wanted, workspace.warehouse.table_metadata(tables.pool_path())]


def _warmup_outdated(survey: Survey, target: Target) -> list[str]:
    """The warm-up, if it is missing and the pool is large enough to train it, or if the pool has grown enough."""
    workspace = survey.workspace
    if target.warmup == "none":
        return []
    if warmup_checkpoint(workspace, target) is not None:
        return _all_if(grown_pool(workspace, target) is not None)
    return _all_if(too_few(workspace, target) is None)


def _perturbation_outdated(survey: Survey, target: Target) -> list[str]:
    """The strength of the random perturbation, if it has to be searched for and can be."""
    if waits_for_pool(survey.workspace, target) is not None or survey.outdated(stage_named("warmup"), target):
        return []
    return _all_if(sigma_due(survey.workspace, target))


def _validation_outdated(survey: Survey, target: Target) -> list[str]:
    """Return the outdated validation sets that the target's scores use, if they can be read and measured now."""
    workspace = survey.workspace
    measurable = signal_dir(workspace, target, target.signals[0]) is not None
    unseen = survey.missing(stage_named("validation"), target, [ALL])
    return _all_if(bool(unseen) or (measurable and bool(sets_due(workspace, target))))


def _validation_state(survey: Survey, target: Target, _parts: Sequence[str]) -> object:
    workspace = survey.workspace
    unseen = bool(survey.missing(stage_named("validation"), target, [ALL]))
    state = validation_state(workspace, target)
    return [unseen, checkpoint_digest(workspace, target), state, today_if_limited(workspace.settings.limits)]


def _signals_outdated(survey: Survey, target: Target) -> list[str]:
    """Shards that lack any signal. One run measures all that is missing of a sample in one pass."""
    # The fingerprints come first: a model that is missing is an error here, not a reason to measure nothing.
    for signal in target.signals:
        signal_fingerprint(survey.workspace, target, signal)
    lacking = survey.lacking_signals(target)
    return sorted({shard for shards in lacking.values() for shard in shards})


def _signals_state(survey: Survey, target: Target, shards: Sequence[str]) -> object:
    """Return what is wanted and stored of a target's signals.

    Parts count, so that a killed run is requested again once it has measured something, and so do the shards' records
    as they were written, so that going back to former settings for the second time is requested too.
    """
    workspace = survey.workspace
    limits = image_limits_key(workspace, target)
    asked = signals_to_measure(survey.lacking_signals(target), shards)
    wanted = [signal_fingerprint(workspace, target, signal) for signal in asked]
    stored: list[object] = []
    for signal in target.signals:
        folder = signal_dir(workspace, target, signal)
        if folder is None:
            # It waits for a checkpoint, so nothing of it can be stored.
            continue
        stored += [workspace.warehouse.names(place) for place in (folder, left_out_dir(folder, limits))]
        stored += [workspace.warehouse.read_json(shard_record_path(folder, shard)) for shard in shards]
    return [limits, today_if_limited(workspace.settings.limits), asked, wanted, list(shards), stored]


def _scores_outdated(survey: Survey, target: Target) -> list[str]:
    """Measured shards whose scores are missing, or were made from other signals, samples or parameters."""
    workspace = survey.workspace
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
    outdated = []
    present = present_shards(workspace)
    for shard in present:
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
            outdated.append(shard)
    unmeasured = {s for signal in signals for s in unmeasured_shards(workspace, target, signal, present)}
    return _with_missing(survey, "scores", target, outdated, [s for s in present if s not in unmeasured])


def _scores_state(survey: Survey, target: Target, shards: Sequence[str]) -> object:
    stored = survey.workspace.warehouse.folder_metadata(tables.sample_scores_dir(target.name))
    return [stored.get(shard, {}) for shard in shards]


def _manifest_outdated(survey: Survey, target: Target) -> list[str]:
    """The target's manifest, if the stored tables say something else than it does."""
    warehouse = survey.workspace.warehouse
    if not warehouse.names(tables.sample_scores_dir(target.name)):
        return []
    stored = warehouse.table_metadata(tables.score_manifest_path(target.name)).get("fingerprint")
    return _all_if(stored != manifest_digest(build_manifest(survey.workspace, target)))


def _manifest_state(survey: Survey, target: Target, _parts: Sequence[str]) -> object:
    stored = survey.workspace.warehouse.table_metadata(tables.score_manifest_path(target.name))
    return [manifest_digest(build_manifest(survey.workspace, target)), stored]


def _subset_outdated(survey: Survey, subset: Subset) -> list[str]:
    return _all_if(subset_due(survey.workspace, subset))


def _comparison_outdated(survey: Survey, _item: None) -> list[str]:
    workspace = survey.workspace
    made = any(workspace.warehouse.table_metadata(tables.subset_path(s.name)) for s in workspace.settings.subsets)
    return _all_if(made and _differs(workspace, tables.subset_comparison_path(), wanted_comparison(workspace)))


def _preference_outdated(survey: Survey, _item: None) -> list[str]:
    wanted = wanted_preference(survey.workspace)
    return _all_if(_differs(survey.workspace, tables.preference_path(), wanted))


def _spectra_outdated(survey: Survey, _item: None) -> list[str]:
    wanted = wanted_spectra(survey.workspace)
    return _all_if(_differs(survey.workspace, tables.spectra_by_layer_path(), wanted))


def _differs(workspace: Workspace, path: str, wanted: str | None) -> bool:
    """Return True if a table is wanted and the stored one has another fingerprint."""
    return wanted is not None and workspace.warehouse.table_metadata(path).get("fingerprint") != wanted


def _metadata_of(path: Callable[[Any], str]) -> Callable[[Survey, Any, Sequence[str]], object]:
    """Return a stage's state that is the metadata of one table."""
    return lambda survey, item, _parts: survey.workspace.warehouse.table_metadata(path(item))


def _report(name: str, outdated: Callable[[Survey, Any], list[str]], path: str) -> Stage:
    return Stage(
        name,
        "reports",
        outdated,
        needs=("scores", "manifest", "subset"),
        trigger="condition",
        state=_metadata_of(lambda _item: path),
    )


STAGES: tuple[Stage, ...] = (
    Stage("corpus", "corpus", _corpus_outdated, by_shard=True, state=_corpus_state),
    Stage("quality", "corpus", _quality_outdated, needs=("corpus",), by_shard=True, state=_quality_state),
    Stage("pool", "corpus", _pool_outdated, needs=("corpus", "quality"), state=_pool_state),
    Stage(
        "warmup",
        "target",
        _warmup_outdated,
        needs=("corpus",),
        measures=True,
        waits=waits_for_pool,
        state=lambda survey, target, _parts: [warmup_key(survey.workspace, target), sorted(survey.digests)],
    ),
    Stage(
        "perturbation",
        "target",
        _perturbation_outdated,
        needs=("corpus", "warmup"),
        measures=True,
        state=lambda survey, target, _parts: [sigma_path(survey.workspace, target), sorted(survey.digests)],
    ),
    Stage(
        "signals",
        "target",
        _signals_outdated,
        needs=("corpus", "warmup", "perturbation"),
        by_shard=True,
        measures=True,
        remark=waits_for_strength,
        state=_signals_state,
    ),
    # After the signals: a sample of a set that is also in the pool is measured there, with all signals in one pass.
    Stage(
        "validation",
        "target",
        _validation_outdated,
        needs=("corpus", "warmup", "perturbation", "signals"),
        measures=True,
        state=_validation_state,
    ),
    Stage("scores", "target", _scores_outdated, by_shard=True, trigger="condition", state=_scores_state),
    Stage("manifest", "target", _manifest_outdated, needs=("corpus", "signals", "scores"), state=_manifest_state),
    Stage(
        "subset",
        "subset",
        _subset_outdated,
        # Also the subsets that it is chosen from.
        needs=("scores", "manifest", "subset"),
        trigger="condition",
        state=_metadata_of(lambda subset: tables.subset_path(subset.name)),
    ),
    _report("comparison", _comparison_outdated, tables.subset_comparison_path()),
    _report("preference", _preference_outdated, tables.preference_path()),
    _report("spectra", _spectra_outdated, tables.spectra_by_layer_path()),
)

SCOPES: tuple[Scope, ...] = ("corpus", "target", "subset", "reports")

_BY_NAME = {stage.name: stage for stage in STAGES}
