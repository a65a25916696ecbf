"""The main job: the whole path in one process, without the UI, on the same instance and with the same assets.

It does what sensors and automation conditions do, stage by stage: registers files, then materializes what
is due (`curation_assets.operations.due`) in contiguous ranges. A second call with nothing due touches no model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import dagster as dg

from curation_assets import tables
from curation_assets.config.settings import Subset, Target
from curation_assets.corpus.ingest import accept_listing, present_shards
from curation_assets.definitions import build_definitions
from curation_assets.defs.automation import CORPUS_KEYS, lacking_signals, signals_to_run, without_event
from curation_assets.defs.checkpoints import base_model_key, perturbation_key_of, warmup_key_of
from curation_assets.defs.corpus import LANDING_KEY
from curation_assets.defs.dead_runs import bury_dead_runs, process_tags
from curation_assets.defs.evaluation import EVALUATION_KEY
from curation_assets.defs.landing_sensor import DATA_VERSION_TAG, observation
from curation_assets.defs.partitions import SHARDS, STAGE_TAG, range_tags, release_key, release_partitions
from curation_assets.defs.quality import POOL_KEY, SAMPLE_QUALITY_KEY
from curation_assets.defs.releases import release_asset_key
from curation_assets.defs.reports import COMPARISON_KEY, PREFERENCE_KEY, SPECTRA_KEY
from curation_assets.defs.scores import sample_scores_key, score_keys, score_manifest_key
from curation_assets.defs.signals import signal_key
from curation_assets.defs.subsets import subset_key
from curation_assets.defs.validation import TOKENS_RUN, validation_keys, validation_signals_key
from curation_assets.operations import due
from curation_assets.quality.checks import benchmark_files
from curation_assets.quality.filtered_pool import pool_due, quality_due
from curation_assets.releases.build import Release, latest_release, next_release, read_release, refuse_broken
from curation_assets.signals.held_out import validation_of
from curation_assets.signals.store import shard_record_path, signal_dir
from curation_assets.subsets.select import subset_due
from curation_assets.workspace.fingerprints import base_digest, scored_signals_fingerprint
from curation_assets.workspace.held_out_files import wanted_validation
from curation_assets.workspace.limits import Allowance, LimitReachedError, allowed
from curation_assets.workspace.workspace import Workspace
from curation_resources.sections import SignalName
from curation_resources.storage.read_cache import one_look

Until = Literal["corpus", "checkpoints"]

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass
class RunSummary:
    """What one call of the main job did.

    Attributes:
        new_shards: files that became partitions.
        read: shards that were read and segmented.
        rejected: rows rejected in these shards, by reason.
        measured: samples of which any signal was measured, by target.
        without_signal: samples of the visited shards that a signal could not be measured of, by target, signal
            and reason.
        tokens_measured: tokens run through models to measure signals, of validation sets too.
        scored: shards scored, by target.
        subsets: subsets that were selected anew.
        releases: releases that were made.
        waiting: why something could not be done yet.
        stopped: the limit at which measuring stopped; None if it went to its end. What is left is due.
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
        instance: where runs, events and partitions are kept.
        announce: called with a line before each run of assets.
        accept_removals: whether files that are gone are meant to be, however many.
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
        self._job = build_definitions(workspace).resolve_implicit_global_asset_job_def()

    def run(self, until: Until | None = None) -> RunSummary:
        """Do everything that is due, up to the subsets (and releases, if the policy says so).

        Where `limits` are set, this call measures so much and no more: scores, subsets and releases of a target that
        is not measured to its end wait for the call that does so, as they do for the scoring sensor.

        Args:
            until: where to stop. corpus: when it is read and filtered. checkpoints: when all is there that shards are
                measured at, and held-out sets are measured.
        """
        bury_dead_runs(self.instance)
        self._check_models()
        with one_look():
            return self._run(until)

    def _run(self, until: Until | None) -> RunSummary:
        summary = RunSummary()
        self._check_held_out()
        shards = self._register(summary)
        self._read(shards, summary)
        self._filter(shards)
        if until == "corpus":
            return summary
        with allowed(Allowance(self.workspace.settings.limits)) as allowance:
            for target in self.workspace.settings.targets:
                ready = self._make_checkpoints(target, summary, allowance)
                if until == "checkpoints":
                    if ready:
                        self._measure_held_out(target, summary, allowance)
                    continue
                if ready:
                    self._measure(target, summary, allowance)
                self._score(target, summary, allowance)
        stopped = {target for target, _ in allowance.unfinished}
        summary.stopped = allowance.reached() if stopped else None
        return summary if until is not None else self._choose(summary, stopped)

    def _choose(self, summary: RunSummary, stopped: Collection[str]) -> RunSummary:
        """Subsets, releases and reports of what is measured; not of targets that stopped before their end."""
        for subset in self.workspace.settings.subsets:
            if self.workspace.settings.score(subset.score).target not in stopped:
                self._select(subset, summary)
        if stopped:
            return summary
        if due.comparison_due(self.workspace):
            self._execute("comparing subsets", "comparison", [COMPARISON_KEY])
        if due.preference_due(self.workspace):
            self._execute("counting preferences", "preference", [PREFERENCE_KEY])
        if due.spectra_due(self.workspace):
            self._execute("looking at gradient spectra", "spectra", [SPECTRA_KEY])
        return summary

    def release(self, subset: Subset) -> tuple[Release, bool]:
        """Release the current subset; gives the release, and whether it is new."""
        latest = latest_release(self.workspace, subset)
        number = next_release(self.workspace, subset)
        key = release_key(subset.name, number)
        asset = release_asset_key(subset)
        if latest is not None and latest.number == number and not without_event(self.instance, asset, [key]):
            # Nobody is told that it is as it was without a look at it.
            refuse_broken(self.workspace, latest)
            return latest, False
        self.instance.add_dynamic_partitions(str(release_partitions(subset.name).name), [key])
        self._execute(f"releasing {key}", "release", [asset], partition=key)
        return read_release(self.workspace, subset, number), latest is None or latest.number != number

    def evaluate(self, seeds: Sequence[int] = (), subsets: Sequence[str] = ()) -> None:
        """Fine-tune and ask what the evaluation of the configuration lacks: `evaluation.summary.write_evaluation`."""
        bury_dead_runs(self.instance)
        name = "__".join(EVALUATION_KEY.path)
        config = {"ops": {name: {"config": {"seeds": list(seeds), "subsets": list(subsets)}}}}
        self._execute("evaluating subsets", "evaluation", [EVALUATION_KEY], config=config)

    def _check_models(self) -> None:
        """Refuse unusable models before any work, and report the base models' versions."""
        for target in self.workspace.settings.targets:
            version = base_digest(self.workspace, target, download=True)
            self._observe(observation(base_model_key(target), version))

    def _check_held_out(self) -> None:
        """Refuse held-out files that are not there before any work, and not after hours of measuring."""
        benchmark_files(self.workspace)
        for target in self.workspace.settings.targets:
            for name in validation_of(self.workspace, target):
                wanted_validation(self.workspace, self.workspace.settings.validation_set(name))

    def _register(self, summary: RunSummary) -> list[str]:
        """Make partitions of new files and report the versions of all; gives the settled shards in order."""
        accept_listing(self.workspace, confirmed=self._accept_removals)
        files = self.workspace.landing.settled()
        digests = self.workspace.landing.digests(files)
        name = str(SHARDS.name)
        known = set(self.instance.get_dynamic_partitions(name))
        new = [shard for shard in digests if shard not in known]
        if new:
            self.instance.add_dynamic_partitions(name, new)
        for shard in due.corpus_due(self.workspace, digests):
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

    def _read(self, shards: Sequence[str], summary: RunSummary) -> None:
        digests = self.workspace.landing.digests(
            file for file in self.workspace.landing.files() if file.shard in set(shards)
        )
        wanted = due.corpus_due(self.workspace, digests)
        for key in CORPUS_KEYS:
            wanted += [s for s in without_event(self.instance, key, digests) if s not in wanted]
        for part in self._ranges(wanted):
            self._execute(f"reading {len(part)} shards", "corpus", CORPUS_KEYS, shards=part)
        summary.read = len(wanted)
        scan = self.workspace.warehouse.scan(tables.rejected_rows_dir(), wanted)
        if scan is not None:
            counts = scan.group_by("reason").len().sort("len", "reason", descending=[True, False]).collect()
            summary.rejected = dict(counts.iter_rows())

    def _filter(self, shards: Sequence[str]) -> None:
        """Hold the corpus against its filters, if it has any."""
        present = present_shards(self.workspace)
        wanted = quality_due(self.workspace, present)
        if self.workspace.settings.corpus.filters.any:
            wanted += [s for s in without_event(self.instance, SAMPLE_QUALITY_KEY, shards) if s not in wanted]
        for part in self._ranges(wanted):
            self._execute(f"checking {len(part)} shards", "quality", [SAMPLE_QUALITY_KEY], shards=part)
        unseen = self.workspace.settings.corpus.filters.any and self._unseen([POOL_KEY])
        if unseen or pool_due(self.workspace, present):
            self._execute("filtering the pool", "pool", [POOL_KEY])

    def _unseen(self, keys: Sequence[dg.AssetKey]) -> bool:
        """Whether Dagster never saw one of these materialized: a killed run wrote tables but no event."""
        return any(self.instance.get_latest_materialization_event(key) is None for key in keys)

    def _make_checkpoints(self, target: Target, summary: RunSummary, allowance: Allowance) -> bool:
        """Train and search for what a target is measured at; whether it can be measured now."""
        if due.warmup_due(self.workspace, target):
            if allowance.reached():
                # Of what rests on it nothing could be measured now.
                allowance.leave(target.name, "warm-up", 0, 0)
                return False
            self._execute(f"{target.name}: training the warm-up", "warmup", [warmup_key_of(target)])
        waiting = due.waits_for_pool(self.workspace, target)
        if waiting:
            summary.waiting.append(waiting)
            return False
        if due.perturbation_due(self.workspace, target):
            if allowance.reached():
                allowance.leave(target.name, "perturbation", 0, 0)
                return False
            line = f"{target.name}: searching the strength of the random perturbation"
            self._execute(line, "perturbation", [perturbation_key_of(target)])
        summary.waiting += [reason for reason in [due.waits_for_strength(self.workspace, target)] if reason]
        return True

    def _measure(self, target: Target, summary: RunSummary, allowance: Allowance) -> None:
        present = present_shards(self.workspace)
        lacking = lacking_signals(self.workspace, self.instance, target, present)
        wanted = [shard for shard in present if any(shard in shards for shards in lacking.values())]
        summary.measured[target.name] = 0
        for part in self._ranges(wanted):
            signals = signals_to_run(lacking, part)
            keys = [signal_key(target, signal) for signal in signals]
            self._execute(f"{target.name}: measuring {len(part)} shards", "signals", keys, shards=part)
            finished = [shard for shard in part if (target.name, shard) not in allowance.unfinished]
            self._sum_up(target, signals, finished, summary)
        summary.measured[target.name] += allowance.samples.get(target.name, 0)
        summary.tokens_measured += allowance.tokens.get(target.name, 0)

    def _sum_up(
        self, target: Target, signals: Sequence[SignalName], shards: Sequence[str], summary: RunSummary
    ) -> None:
        """Count what a run over shards measured, and what it could not."""
        without = summary.without_signal.setdefault(target.name, {})
        for number, signal in enumerate(signals):
            folder = str(signal_dir(self.workspace, target, signal))
            records = [self.workspace.warehouse.read_json(shard_record_path(folder, shard)) for shard in shards]
            if number == 0:
                # All signals of a shard were measured in one visit, which each of their records tells of.
                summary.measured[target.name] += sum(record["samples_visited"] for record in records)
                summary.tokens_measured += sum(record["tokens_run"] for record in records)
            for record in records:
                for reason, count in record["without_value"].items():
                    counts = without.setdefault(signal, {})
                    counts[reason] = counts.get(reason, 0) + count

    def _measure_held_out(self, target: Target, summary: RunSummary, allowance: Allowance) -> bool:
        """Read and measure the validation sets that a target's scores look at; whether the allowance lasted."""
        keys = validation_keys(self.workspace, target)
        if due.validation_due(self.workspace, target) or self._unseen(keys):
            try:
                self._execute(f"{target.name}: measuring validation sets", "validation", keys)
            except LimitReachedError:
                # The allowance knows which set was left, as it does of shards.
                summary.tokens_measured += allowance.tokens.get(target.name, 0)
                return False
            summary.tokens_measured += self._tokens_of_validation(target)
        return True

    def _score(self, target: Target, summary: RunSummary, allowance: Allowance) -> None:
        if any(name == target.name for name, _ in allowance.unfinished):
            return
        if not self._measure_held_out(target, summary, allowance):
            return
        keys = score_keys(self.workspace, target)
        wanted = due.scores_due(self.workspace, target)
        present = present_shards(self.workspace)
        signals = self.workspace.settings.signals_of_scores(target)
        unmeasured = {s for signal in signals for s in due.signal_due(self.workspace, target, signal, present)}
        measured = [shard for shard in present if shard not in unmeasured]
        if scored_signals_fingerprint(self.workspace, target) is not None:
            wanted += [s for s in without_event(self.instance, sample_scores_key(target), measured) if s not in wanted]
        for part in self._ranges(wanted):
            self._execute(f"{target.name}: scoring {len(part)} shards", "scores", keys, shards=part)
        summary.scored[target.name] = len(wanted)
        key = score_manifest_key(target)
        if due.manifest_due(self.workspace, target):
            self._execute(f"{target.name}: manifest of scores", "manifest", [key])

    def _tokens_of_validation(self, target: Target) -> int:
        """Tokens that the last run over validation sets ran."""
        event = self.instance.get_latest_materialization_event(validation_signals_key(target))
        made = None if event is None else event.asset_materialization
        return 0 if made is None else int(str(made.metadata[TOKENS_RUN].value))

    def _select(self, subset: Subset, summary: RunSummary) -> None:
        if subset_due(self.workspace, subset):
            self._execute(f"selecting {subset.name}", "subset", [subset_key(subset)])
            summary.subsets.append(subset.name)
        if due.subset_rows(self.workspace, subset) and self.workspace.settings.releases.policy == "on_change":
            release, new = self.release(subset)
            if new:
                summary.releases.append(release_key(subset.name, release.number))

    def _ranges(self, shards: Sequence[str]) -> list[list[str]]:
        keys = self.instance.get_dynamic_partitions(str(SHARDS.name))
        return due.contiguous_ranges(shards, list(keys), self.workspace.settings.engine.shards_per_run)

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
        """Materialize assets in process; errors of the stage come out as they are."""
        self._announce(line)
        tags = {STAGE_TAG: stage, "curation/config": self.workspace.config_digest} | process_tags()
        # What takes long sees what others write meanwhile; after it everything is looked at anew.
        with one_look(on=False):
            self._job.execute_in_process(
                run_config=QUIET | dict(config or {}),
                instance=self.instance,
                asset_selection=list(selection),
                partition_key=partition,
                tags=tags | (range_tags(shards) if shards else {}),
                raise_on_error=True,
            )
