"""The main job: every outdated stage in one process, without the UI, on the same instance and with the same assets.

It does what sensors and automation conditions do: it registers files, then walks the list of stages
(`curation_assets.operations.stages`) and materializes what is outdated, in contiguous ranges of shards. A second call
with nothing outdated loads no model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import dagster as dg

from curation_assets import tables
from curation_assets.config.settings import Subset, Target
from curation_assets.corpus.ingest import accept_listing
from curation_assets.definitions import build_definitions
from curation_assets.defs.audit import AUDIT_KEY, EVERYTHING
from curation_assets.defs.checkpoints import base_model_key
from curation_assets.defs.corpus import LANDING_KEY
from curation_assets.defs.dead_runs import fail_dead_runs, process_tags
from curation_assets.defs.evaluation import EVALUATION_KEY
from curation_assets.defs.partitions import (
    SHARDS,
    STAGE_TAG,
    add_partitions,
    range_tags,
    release_key,
    release_partitions,
)
from curation_assets.defs.releases import release_asset_key
from curation_assets.defs.sensors import DATA_VERSION_TAG, observation
from curation_assets.defs.stage_assets import asset_keys, ranges_of, unrecorded_by, without_event
from curation_assets.defs.validation import TOKENS_RUN, validation_signals_key
from curation_assets.operations.stages import (
    Item,
    Stage,
    Survey,
    signals_to_measure,
    stage_named,
    subset_rows,
    walk,
)
from curation_assets.quality.checks import benchmark_files
from curation_assets.releases.build import Release, latest_release, next_release, read_release, refuse_broken
from curation_assets.signals.held_out import validation_of
from curation_assets.signals.store import shard_record_path, signal_dir
from curation_assets.tables.signals import SignalName
from curation_assets.workspace.fingerprints import base_digest
from curation_assets.workspace.held_out_files import wanted_validation
from curation_assets.workspace.limits import Allowance, LimitReachedError
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.read_cache import one_look

Until = Literal["corpus", "checkpoints"]

LINES = {
    "corpus": "reading {shards} shards",
    "quality": "checking {shards} shards",
    "pool": "filtering the pool",
    "warmup": "{item}: training the warm-up",
    "perturbation": "{item}: searching the strength of the random perturbation",
    "validation": "{item}: measuring validation sets",
    "signals": "{item}: measuring {shards} shards",
    "scores": "{item}: scoring {shards} shards",
    "manifest": "{item}: manifest of scores",
    "subset": "selecting {item}",
    "comparison": "comparing subsets",
    "preference": "counting preferences",
    "spectra": "summarizing gradient spectra",
}
"""The progress line of each stage."""

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass
class RunSummary:
    """The result of one call of the main job.

    Attributes:
        new_shards: number of files that became partitions.
        read: number of shards that were read and segmented.
        rejected: rows rejected in these shards, by reason.
        measured: samples with any signal measured, by target.
        without_signal: samples of the visited shards for which a signal could not be measured, by target, signal and
            reason.
        tokens_measured: tokens run through models to measure signals, including validation sets.
        scored: number of shards scored, by target.
        subsets: subsets that were selected again.
        releases: releases that were made.
        waiting: reasons why something could not be done yet.
        stopped: the limit that stopped measuring; None if it completed. The rest stays outdated.
    """

    new_shards: int = 0
    read: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    measured: dict[str, int] = field(default_factory=dict)
    without_signal: dict[str, dict[SignalName, dict[str, int]]] = field(default_factory=dict)
    tokens_measured: int = 0
    scored: dict[str, int] = field(default_factory=dict)
    subsets: list[str] = field(default_factory=list)
    releases: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    stopped: str | None = None


class MainJob:
    """Runs the assets of a workspace in this process.

    Args:
        workspace: the configuration.
        instance: the Dagster instance.
        announce: called with a line before each run of assets.
        accept_removals: whether missing files are meant to be gone, however many.
    """

    def __init__(
        self,
        workspace: Workspace,
        instance: dg.DagsterInstance,
        announce: Callable[[str], None] | None = None,
        accept_removals: bool = False,
    ) -> None:
        self.workspace = workspace
        self.instance = instance
        self._announce = announce or (lambda _line: None)
        self._accept_removals = accept_removals
        self._executed = 0
        self._job: dg.JobDefinition | None = None

    def _job_with(self, allowance: Allowance | None) -> dg.JobDefinition:
        """Return the job of all assets, which measure with an allowance."""
        workspace = replace(self.workspace, allowance=allowance)
        return build_definitions(workspace).resolve_implicit_global_asset_job_def()

    def run(self, until: Until | None = None) -> RunSummary:
        """Do everything that is outdated, up to the subsets (and releases, if the policy says so).

        If `limits` are set, this call measures no more than that. Scores, subsets and releases of a target that is not
        measured completely then wait for a later call, as they do for the scoring sensor.

        Args:
            until: where to stop. corpus: after it is read and filtered. checkpoints: once all checkpoints for measuring
                shards exist and held-out sets are measured.
        """
        fail_dead_runs(self.instance)
        self._check_models()
        with one_look():
            return self._run(until)

    def _run(self, until: Until | None) -> RunSummary:
        summary = RunSummary()
        self._check_held_out()
        shards = self._register(summary)
        allowance = Allowance(self.workspace.settings.limits)
        self._job = self._job_with(allowance)
        survey, executed = self._survey(shards), self._executed
        done: set[tuple[str, str]] = set()

        def ignored(need: Stage, other: Item) -> bool:
            """Return True for a stage that had its turn: a file that changes during a run is read by the next one."""
            return not _included(need, until) or (need.name, _name(other)) in done

        for stage, item in walk(self.workspace):
            if not _included(stage, until):
                continue
            if self._executed != executed:
                # Check again: what ran has changed the inputs of the next stage.
                survey, executed = self._survey(shards), self._executed
            stopped = {target for target, _ in allowance.unfinished}
            if self._stopped(item, stage, stopped) or survey.blocked(stage, item, ignored):
                continue
            notes = [stage.waits(self.workspace, item), stage.remark(self.workspace, item)]
            summary.waiting += [note for note in notes if note is not None]
            if notes[0] is None:
                self._run_stage(survey, stage, item, summary, allowance)
                done.add((stage.name, _name(item)))
        if allowance.unfinished:
            summary.stopped = allowance.reached()
        return summary

    def _survey(self, shards: Sequence[str]) -> Survey:
        wanted = set(shards)
        files = [file for file in self.workspace.landing.files() if file.shard in wanted]
        digests = self.workspace.landing.digests(files)
        return Survey(self.workspace, digests, unrecorded_by(self.instance, self.workspace))

    def _stopped(self, item: Item, stage: Stage, stopped: Collection[str]) -> bool:
        """Return whether an item depends on a target that stopped at a limit, so that its scores and subsets wait."""
        if isinstance(item, Subset):
            chain = self.workspace.settings.chain(item)
            return any(target in stopped for one in chain for target in self.workspace.settings.targets_of(one))
        return item.name in stopped if isinstance(item, Target) else stage.scope == "reports" and bool(stopped)

    def _run_stage(self, survey: Survey, stage: Stage, item: Item, summary: RunSummary, allowance: Allowance) -> None:
        """Run the outdated parts of a stage and add the results to the summary."""
        outdated = survey.outdated(stage, item)
        if stage.measures and not stage.by_shard and outdated and allowance.reached():
            # Nothing that depends on it could be measured now.
            assert item is not None
            allowance.leave(item.name, stage.name, 0, 0)
            return
        if isinstance(item, Target) and stage.name == "signals":
            self._measure(survey, item, outdated, summary, allowance)
        elif isinstance(item, Target) and stage.name == "validation":
            self._measure_held_out(survey, item, summary, allowance)
        else:
            for parts in self._ranges(stage, outdated):
                keys = asset_keys(self.workspace, stage, item)
                self._execute(_line(stage, item, parts), stage.name, keys, shards=parts if stage.by_shard else ())
        self._sum_up(stage, item, outdated, summary)

    def _sum_up(self, stage: Stage, item: Item, outdated: Sequence[str], summary: RunSummary) -> None:
        """Add a finished stage to the summary."""
        if stage.name == "corpus":
            summary.read = len(outdated)
            scan = self.workspace.warehouse.scan(tables.rejected_rows_dir(), outdated)
            if scan is not None:
                counts = scan.group_by("reason").len().sort("len", "reason", descending=[True, False]).collect()
                summary.rejected = dict(counts.iter_rows())
        elif stage.name == "scores" and isinstance(item, Target):
            summary.scored[item.name] = len(outdated)
        elif isinstance(item, Subset):
            summary.subsets += [item.name] if outdated else []
            if subset_rows(self.workspace, item) and self.workspace.settings.releases.policy == "on_change":
                release, new = self.release(item)
                summary.releases += [release_key(item.name, release.number)] if new else []

    def release(self, subset: Subset) -> tuple[Release, bool]:
        """Release the current subset; return the release, and whether it is new."""
        latest = latest_release(self.workspace, subset)
        number = next_release(self.workspace, subset)
        key = release_key(subset.name, number)
        asset = release_asset_key(subset)
        if latest is not None and latest.number == number and not without_event(self.instance, asset, [key]):
            # Verify before reporting "unchanged".
            refuse_broken(self.workspace, latest)
            return latest, False
        self.instance.add_dynamic_partitions(str(release_partitions(subset.name).name), [key])
        self._execute(f"releasing {key}", "release", [asset], partition=key)
        return read_release(self.workspace, subset, number), latest is None or latest.number != number

    def evaluate(self, seeds: Sequence[int] = (), subsets: Sequence[str] = ()) -> None:
        """Run the missing parts of the configured evaluation; see `evaluation.summary.write_evaluation`."""
        fail_dead_runs(self.instance)
        name = "__".join(EVALUATION_KEY.path)
        config = {"ops": {name: {"config": {"seeds": list(seeds), "subsets": list(subsets)}}}}
        self._execute("evaluating subsets", "evaluation", [EVALUATION_KEY], config=config)

    def audit(
        self, samples: int | None = None, kinds: Sequence[str] = (), budget_minutes: float | None = None
    ) -> list[str]:
        """Audit the methods; see `evaluation.audit_report.write_audit`. Checkpoints have to be trained before.

        Returns:
            What a person should know: the tokens that were run, and what is not measured or audited.
        """
        config = {"samples": samples, "kinds": list(kinds), "budget_minutes": budget_minutes}
        given = {key: value for key, value in config.items() if value is not None}
        name = "__".join(AUDIT_KEY.path)
        self._job = self._job_with(Allowance(self.workspace.settings.limits))
        self._execute("auditing methods", "audit", [AUDIT_KEY], config={"ops": {name: {"config": given}}})
        event = self.instance.get_latest_materialization_event(AUDIT_KEY)
        assert event is not None
        assert event.asset_materialization is not None
        metadata = {name: value.value for name, value in event.asset_materialization.metadata.items()}
        lines = [f"{int(str(metadata['tokens_run'])):,} tokens measured"]
        if (stopped := metadata["unfinished"]) != EVERYTHING:
            lines.append(f"stopped at {stopped}: what is shown is of a part. `curate audit` goes on from there.")
        skipped = cast("dict[str, str]", metadata["skipped_targets"])
        return lines + [f"{target} is not audited: {reason}" for target, reason in skipped.items()]

    def _check_models(self) -> None:
        """Refuse unusable models before any work, and report the base models' versions."""
        for target in self.workspace.settings.targets:
            version = base_digest(self.workspace, target, download=True)
            self._observe(observation(base_model_key(target), version))

    def _check_held_out(self) -> None:
        """Refuse missing held-out files before any work, not after hours of measuring."""
        benchmark_files(self.workspace)
        for target in self.workspace.settings.targets:
            for name in validation_of(self.workspace, target):
                wanted_validation(self.workspace, self.workspace.settings.validation_set(name))

    def _register(self, summary: RunSummary) -> list[str]:
        """Create partitions for new files and report the versions of all; return the settled shards in order."""
        accept_listing(self.workspace, confirmed=self._accept_removals)
        files = self.workspace.landing.settled()
        digests = self.workspace.landing.digests(files)
        name = str(SHARDS.name)
        known = set(self.instance.get_dynamic_partitions(name))
        new = [shard for shard in digests if shard not in known]
        add_partitions(self.instance, name, new)
        for shard in Survey(self.workspace, digests).outdated(stage_named("corpus"), None):
            self._observe(observation(LANDING_KEY, digests[shard], shard))
        summary.new_shards = len(new)
        return list(digests)

    def _observe(self, event: dg.AssetObservation) -> None:
        """Report an observation, unless the same version was the last one reported."""
        if event.partition is None:
            last = self.instance.get_latest_data_version_record(event.asset_key)
            tags = {} if last is None or last.asset_observation is None else last.asset_observation.tags
            if tags.get(DATA_VERSION_TAG) == event.tags.get(DATA_VERSION_TAG):
                return
        self.instance.report_runless_asset_event(event)

    def _measure(
        self, survey: Survey, target: Target, outdated: Sequence[str], summary: RunSummary, allowance: Allowance
    ) -> None:
        """Measure the shards that lack signals, each range in one pass."""
        stage, lacking = stage_named("signals"), survey.lacking_signals(target)
        summary.measured[target.name] = 0
        for shards in self._ranges(stage, outdated):
            signals = signals_to_measure(lacking, shards)
            keys = asset_keys(self.workspace, stage, target, signals)
            self._execute(_line(stage, target, shards), stage.name, keys, shards=shards)
            finished = [shard for shard in shards if (target.name, shard) not in allowance.unfinished]
            self._count_measured(target, signals, finished, summary)
        summary.measured[target.name] += allowance.samples.get(target.name, 0)
        summary.tokens_measured += allowance.tokens.get(target.name, 0)

    def _count_measured(
        self, target: Target, signals: Sequence[SignalName], shards: Sequence[str], summary: RunSummary
    ) -> None:
        """Count the samples that a run over shards measured, and those it could not."""
        without = summary.without_signal.setdefault(target.name, {})
        for number, signal in enumerate(signals):
            folder = str(signal_dir(self.workspace, target, signal))
            records = [self.workspace.warehouse.read_json(shard_record_path(folder, shard)) for shard in shards]
            if number == 0:
                # All signals of a shard were measured in one visit, which each of their records describes.
                summary.measured[target.name] += sum(record["samples_visited"] for record in records)
                summary.tokens_measured += sum(record["tokens_run"] for record in records)
            for record in records:
                for reason, count in record["without_value"].items():
                    counts = without.setdefault(signal, {})
                    counts[reason] = counts.get(reason, 0) + count

    def _measure_held_out(self, survey: Survey, target: Target, summary: RunSummary, allowance: Allowance) -> None:
        """Read and measure the validation sets that a target's scores need."""
        stage = stage_named("validation")
        if not survey.outdated(stage, target):
            return
        try:
            self._execute(_line(stage, target, ()), stage.name, asset_keys(self.workspace, stage, target))
        except LimitReachedError:
            # The allowance records which set was left, as for shards.
            summary.tokens_measured += allowance.tokens.get(target.name, 0)
            return
        event = self.instance.get_latest_materialization_event(validation_signals_key(target))
        made = None if event is None else event.asset_materialization
        summary.tokens_measured += 0 if made is None else int(str(made.metadata[TOKENS_RUN].value))

    def _ranges(self, stage: Stage, outdated: Sequence[str]) -> list[list[str]]:
        return ranges_of(self.workspace, self.instance, stage, outdated)

    def _execute(
        self,
        line: str,
        stage: str,
        selection: Sequence[dg.AssetKey],
        *,
        shards: Sequence[str] = (),
        partition: str | None = None,
        config: Mapping[str, object] | None = None,
    ) -> None:
        """Materialize assets in process; errors of the stage are raised unchanged."""
        self._announce(line)
        self._executed += 1
        self._job = self._job or self._job_with(None)
        tags = {STAGE_TAG: stage, "curation/config": self.workspace.config_digest} | process_tags()
        # Long runs must see concurrent changes; afterwards everything is read again.
        with one_look(on=False):
            self._job.execute_in_process(
                run_config=QUIET | dict(config or {}),
                instance=self.instance,
                asset_selection=list(selection),
                partition_key=partition,
                tags=tags | (range_tags(shards) if shards else {}),
                raise_on_error=True,
            )


def _included(stage: Stage, until: Until | None) -> bool:
    """Return whether a stage runs before the point at which a run stops."""
    if until is None or stage.scope == "corpus":
        return True
    return until == "checkpoints" and stage.name in ("warmup", "perturbation", "validation")


def _line(stage: Stage, item: Item, shards: Sequence[str]) -> str:
    return LINES[stage.name].format(item=_name(item), shards=len(shards))


def _name(item: Item) -> str:
    return "" if item is None else item.name
