"""Estimate how long a run measures: from stored runs of the same signals, else from a probe of a few batches.

One visit to a shard measures several signals in one pass, and the record of each signal describes the whole visit.
Its tokens and seconds are therefore counted once for all of them. A record describes the last visit to its shard.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from curation_assets.config.settings import Target
from curation_assets.operations.plan_tokens import Pool, TokenCount, segmented, signals_in
from curation_assets.signals.parts import tokens_run
from curation_assets.signals.requests import request_for
from curation_assets.signals.scorers import make_scorer, model_scorer
from curation_assets.signals.store import SignalStore, signal_dir
from curation_assets.tables.signal_rows import LATE
from curation_assets.tables.signals import SIGNALS, SignalName
from curation_assets.workspace.workspace import Workspace
from curation_resources.models.scorer import Scorer
from curation_resources.progress import track
from curation_resources.scoring.batching import plan_batches
from curation_resources.scoring.samples import PrefixWindows, Request, Sample, SampleSignals
from curation_resources.storage.warehouse import parquet_bytes

PROBE_SECONDS = 20.0
"""Maximum time of all probes of a plan; only loading a model and measuring one short sample may take longer."""

BATCHES = 8
"""Number of batches to probe, spread evenly over all of them, from long samples to short ones."""

SEED = 0

ALONE: tuple[SignalName, ...] = (
    "unconditional_likelihoods",
    "direct_answer_likelihoods",
    "headed_answer_likelihoods",
)
"""Signals that each need a pass of their own, over the responses alone."""

ROUNDING = timedelta(milliseconds=2)
"""Tolerance when comparing times: records store seconds to the millisecond."""


@dataclass(frozen=True)
class MeasuredPass:
    """Signals measured together, summed over all shards.

    Attributes:
        signals: the signals of the pass.
        shards: number of shards and validation sets visited.
        samples: number of samples with at least one measured signal.
        tokens: tokens run.
        seconds: time taken; that of a run's first shard includes loading the model.
        devices: the devices used.
        cost: in F, the forward pass of one sample with its prompt, assuming that cost is proportional to tokens; None
            if no stored signal records the length of samples with their prompts.
    """

    signals: tuple[SignalName, ...]
    shards: int
    samples: int
    tokens: int
    seconds: float
    devices: tuple[str, ...]
    cost: float | None

    @property
    def tokens_per_second(self) -> float | None:
        """Throughput; None if no time was recorded."""
        return self.tokens / self.seconds if self.seconds else None


@dataclass
class Probe:
    """Timing and sizes from measuring a few batches.

    Attributes:
        base: whether the base model was used because the warm-up has not been trained.
        of_batches: number of batches to choose from.
        load_seconds: time to load the model.
        spent: time that the probe took, including loading the model.
        seconds: time to measure the batches, or what fits into the time of them, including encoding.
        tokens: tokens of these batches.
        samples: samples of these batches.
        batches: number of batches measured; 0 if only one sample was measured in the time allowed.
        row_bytes: by signal, bytes per row in Parquet.
        part_bytes: by signal, bytes of a part without rows.
    """

    base: bool
    of_batches: int
    load_seconds: float = 0.0
    spent: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    samples: int = 0
    batches: int = 0
    row_bytes: dict[SignalName, float] = field(default_factory=dict)
    part_bytes: dict[SignalName, int] = field(default_factory=dict)


LEAST_SECONDS = 60.0
"""Recorded time from which on a speed is trusted for more tokens than were recorded.

A record's time includes loading the model."""


@dataclass(frozen=True)
class Speed:
    """The estimated time of a run.

    Attributes:
        seconds: time to measure on all devices. From a probe, loading the model is not included.
        tokens_per_second: throughput of all devices.
        device: name of the devices.
        devices: number of devices.
        probe: the probe that this rests on; None if it rests on stored runs.
    """

    seconds: float
    tokens_per_second: float
    device: str
    devices: int
    probe: Probe | None = None


def speed_of(
    workspace: Workspace,
    target: Target,
    pool: Pool,
    count: TokenCount,
    measured: Sequence[MeasuredPass],
    *,
    base: bool,
    probe_seconds: float | None,
) -> Speed | None:
    """Estimate the time to measure the counted tokens; store nothing.

    Args:
        workspace: the configuration.
        target: the target whose model measures.
        pool: the source of the samples.
        count: the tokens to run.
        measured: the passes of stored runs.
        base: the warm-up has not been trained. A probe then measures with the base model, which has the same shape.
        probe_seconds: time allowed for a probe; None: no probe.

    Returns:
        The estimate; None if there is nothing to run, or neither stored runs nor a probe can tell.

    Raises:
        ScoringError: the model cannot be used for measuring, or the device is missing.
    """
    if not count.tokens:
        return None
    recorded = recorded_seconds(count, measured)
    # Visits of a cluster's workers overlap in time, so their seconds do not add up.
    if recorded is not None and (workspace.settings.engine.kind != "ray" or target.endpoint is not None):
        with make_scorer(workspace, target) as scorer:
            device, devices = scorer.device_name(), scorer.device_count
        if {name for one in measured for name in one.devices} == {device}:
            return Speed(recorded, count.tokens / recorded, device, devices)
    # A judge is not queried for a plan: it may cost money.
    if probe_seconds is None or target.endpoint is not None:
        return None
    return run_probe(workspace, target, pool, count, base, probe_seconds)


def recorded_seconds(count: TokenCount, measured: Sequence[MeasuredPass]) -> float | None:
    """Return the time that the counted tokens take at the speed of stored runs.

    Return None if some signals have not been measured together before, as they would be now, or only in so few tokens
    and so little time that loading the model may have taken most of it.
    """
    speeds = {
        frozenset(one.signals): one.tokens_per_second
        for one in measured
        if one.seconds >= LEAST_SECONDS or one.tokens >= count.tokens
    }
    seconds = 0.0
    for (lacking,), rows in count.rows.group_by("lacking"):
        tokens = rows.select(((pl.col("forward") + pl.col("alone")) * pl.col("weight")).sum()).item()
        speed = speeds.get(frozenset(signals_in(str(lacking))))
        if tokens and not speed:
            return None
        seconds += tokens / speed if speed else 0.0
    return seconds


@dataclass(frozen=True)
class Visit:
    """One visit to a shard, reconstructed from the records of its signals."""

    shard: str
    signals: tuple[SignalName, ...]
    samples: int
    tokens: int
    seconds: float
    device: str


def measured_passes(workspace: Workspace, target: Target) -> list[MeasuredPass]:
    """Sum the records under the current fingerprints, grouped by the signals that were measured together."""
    records: dict[str, list[tuple[SignalName, dict[str, Any]]]] = {}
    for signal in workspace.settings.measured_signals(target):
        folder = signal_dir(workspace, target, signal)
        if folder is None:
            continue
        for place in ("shards", "validation"):
            for name in workspace.warehouse.documents(f"{folder}/{place}"):
                record = workspace.warehouse.read_json(f"{folder}/{place}/{name}.json")
                records.setdefault(f"{place}/{name}", []).append((signal, record))
    found = [visit for name, own in records.items() for visit in visits(name, own)]
    by_signals: dict[tuple[SignalName, ...], list[Visit]] = {}
    for visit in found:
        by_signals.setdefault(visit.signals, []).append(visit)
    length = mean_length(workspace, target) if found else None
    return [_sum(signals, own, length) for signals, own in sorted(by_signals.items(), key=lambda item: -len(item[0]))]


def visits(shard: str, records: Sequence[tuple[SignalName, dict[str, Any]]]) -> list[Visit]:
    """Reconstruct the visits to a shard from the records of its signals, without visits that had nothing to measure.

    Records belong to the same visit if their samples, tokens and device agree and their times overlap.
    """
    found: list[list[tuple[SignalName, dict[str, Any]]]] = []
    for signal, record in sorted(records, key=lambda item: str(item[1]["finished"])):
        if not record["samples_visited"] or not record["measured"]:
            continue
        for visit in found:
            if _same_visit(visit[0][1], record):
                visit.append((signal, record))
                break
        else:
            found.append([(signal, record)])
    return [_visit(shard, visit) for visit in found]


def mean_length(workspace: Workspace, target: Target) -> float | None:
    """Return the mean tokens of a sample run with its prompt, according to the stored signal with the most samples."""
    most: tuple[int, float] | None = None
    for signal in workspace.settings.measured_signals(target):
        if signal in ALONE or signal_dir(workspace, target, signal) is None:
            continue
        stored = SignalStore.of(workspace, target, signal).scan()
        if stored is None:
            continue
        run = stored.filter(pl.col("tokens") > 0).select(pl.len(), mean=pl.col("tokens").mean()).collect()
        count, mean = run.row(0)
        if count and (most is None or count > most[0]):
            most = count, mean
    return None if most is None else most[1]


def unrecorded(workspace: Workspace, target: Target, measured: Sequence[MeasuredPass]) -> tuple[int, int]:
    """Return the number of stored samples that no pass in `measured` contains, and about how many tokens they took."""
    most = (0, 0)
    for signal in workspace.settings.measured_signals(target):
        stored = (
            None if signal_dir(workspace, target, signal) is None else SignalStore.of(workspace, target, signal).scan()
        )
        if stored is None:
            continue
        tokens = pl.col("tokens") if "tokens" in stored.collect_schema() else pl.lit(0)
        counted = stored.unique("sample_id").select(pl.len(), mean=tokens.mean().fill_null(0)).collect()
        rows, mean = counted.row(0)
        more = rows - sum(one.samples for one in measured if signal in one.signals)
        most = max(most, (more, round(more * mean)))
    return most


def stored_bytes(workspace: Workspace, target: Target, signal: SignalName) -> int:
    """Return the size of a signal's parts under its current fingerprint, in bytes."""
    folder = signal_dir(workspace, target, signal)
    files = [] if folder is None else workspace.warehouse.files(folder)
    return sum(file.size for file in files if file.name.lower().endswith(".parquet"))


def _same_visit(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two records, given in the order of their finish, describe the same visit."""
    alike = all(one[key] == other[key] for key in ("samples_visited", "tokens_run", "device"))
    began = _time(other) - timedelta(seconds=other["seconds"])
    return alike and began <= _time(one) + ROUNDING


def _time(record: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(record["finished"])


def _visit(shard: str, records: Sequence[tuple[SignalName, dict[str, Any]]]) -> Visit:
    last = records[-1][1]
    signals = tuple(sorted(signal for signal, _ in records))
    seconds = max(record["seconds"] for _, record in records)
    return Visit(shard, signals, last["samples_visited"], last["tokens_run"], seconds, last["device"])


def _sum(signals: tuple[SignalName, ...], visits_of: Sequence[Visit], length: float | None) -> MeasuredPass:
    tokens = sum(visit.tokens for visit in visits_of)
    return MeasuredPass(
        signals,
        len({visit.shard for visit in visits_of}),
        sum(visit.samples for visit in visits_of),
        tokens,
        sum(visit.seconds for visit in visits_of),
        tuple(sorted({visit.device for visit in visits_of if visit.device})),
        None if length is None else tokens / length,
    )


@dataclass(frozen=True)
class Batch:
    """Samples that a run would measure together.

    Attributes:
        lacking: the signals that they lack, joined by +.
        sample_ids: their shards and ids.
        sizes: tokens to run of each.
    """

    lacking: str
    sample_ids: list[tuple[str, str]]
    sizes: list[int]

    @property
    def tokens(self) -> int:
        """Tokens to run."""
        return sum(self.sizes)

    def within(self, tokens: float) -> Batch:
        """Return the first samples that take no more tokens than this, but at least one."""
        together, count = self.sizes[0], 1
        while count < len(self.sizes) and together + self.sizes[count] <= tokens:
            together += self.sizes[count]
            count += 1
        return Batch(self.lacking, self.sample_ids[:count], self.sizes[:count])


def run_probe(
    workspace: Workspace, target: Target, pool: Pool, count: TokenCount, base: bool, limit: float
) -> Speed | None:
    """Measure a few of the batches that a run would make, within `limit` seconds; see `speed_of`.

    The shortest sample comes first: its speed shows how much of each batch fits into an equal share of the time left.
    """
    batches = run_batches(count, workspace.settings.engine.batch_tokens)
    if not batches:
        return None
    from curation_resources.scoring.device_names import devices_of  # noqa: PLC0415

    started = time.perf_counter()
    devices = devices_of(workspace.settings.engine.device)
    measured = target.model_copy(update={"warmup": "none"}) if base else target
    results: list[tuple[str, list[SampleSignals]]] = []
    probe = Probe(base, len(batches))

    def left() -> float:
        return limit - (time.perf_counter() - started)

    # One device suffices to measure its speed; loading the model on all of them would only take longer.
    with Scorer(model_scorer(workspace, measured).spec, devices[0]) as scorer:
        device = scorer.device_name()
        with track(f"{target.name}: loading the model onto {device}", 1) as advance:
            scorer.load()
            probe.load_seconds = time.perf_counter() - started
            advance(1)
        chosen, single = chosen_batches(batches), _shortest(batches)
        with track(f"{target.name}: measuring for at most {max(0.0, left()):.0f} s", len(chosen)) as advance:
            seconds, found = _measure(scorer, target, pool, single, base)
            if seconds < left():
                # The first call also sets up the device, and loads the checkpoints along a run.
                again, found = _measure(scorer, target, pool, single, base)
                probe.load_seconds += max(0.0, seconds - again)
                seconds = again
            tokens = sum(map(tokens_run, found))
            for place, batch in enumerate(chosen):
                per_second = tokens / seconds if tokens else math.inf
                part = batch.within(per_second * left() / (len(chosen) - place))
                advance(1)
                if left() <= part.tokens / per_second:
                    continue
                took, results_of_batch = _measure(scorer, target, pool, part, base)
                results.append((batch.lacking, results_of_batch))
                probe.seconds += took
                probe.tokens += sum(map(tokens_run, results_of_batch))
                probe.samples += len(results_of_batch)
                probe.batches += 1
                seconds, tokens = probe.seconds, probe.tokens
    if not results:
        results = [(single.lacking, found)]
        probe.seconds, probe.tokens, probe.samples = seconds, tokens, len(found)
    _add_sizes(probe, results, target)
    probe.spent = time.perf_counter() - started
    if not probe.tokens:
        return None
    per_second = probe.tokens * len(devices) / probe.seconds
    names = device if len(devices) == 1 else f"{len(devices)} x {device}"
    return Speed(count.tokens / per_second, per_second, names, len(devices), probe)


def run_batches(count: TokenCount, batch_tokens: int) -> list[Batch]:
    """Return the batches that a run would make of the encoded samples: shard by shard if all of them were encoded."""
    run = count.rows.filter(pl.col("forward") + pl.col("alone") > 0)
    kinds = ["shard", "lacking"] if count.exact else ["lacking"]
    batches = []
    for _, rows in run.group_by(kinds, maintain_order=True):
        keys = (rows["images"] > 0).to_list()
        ids = rows.select("shard", "sample_id").rows()
        tokens = (rows["forward"] + rows["alone"]).to_list()
        for positions in plan_batches(rows["length"].to_list(), batch_tokens, keys):
            samples = [ids[position] for position in positions]
            batches.append(Batch(rows["lacking"][0], samples, [tokens[position] for position in positions]))
    return batches


def _shortest(batches: Sequence[Batch]) -> Batch:
    """Return the sample with the fewest tokens, as a batch of its own."""
    batch = min(batches, key=lambda one: min(one.sizes))
    place = batch.sizes.index(min(batch.sizes))
    return Batch(batch.lacking, [batch.sample_ids[place]], [batch.sizes[place]])


def chosen_batches(batches: list[Batch]) -> list[Batch]:
    """Pick a few evenly spread batches in a seeded order, so that the spread survives if time runs out."""
    count = min(BATCHES, len(batches))
    chosen = [batches[(2 * number + 1) * len(batches) // (2 * count)] for number in range(count)]
    random.Random(SEED).shuffle(chosen)
    return chosen


def _measure(scorer: Scorer, target: Target, pool: Pool, batch: Batch, base: bool) -> tuple[float, list[SampleSignals]]:
    """Return seconds and results of one batch; reading its samples is not timed."""
    signals = signals_in(batch.lacking)
    by_shard: dict[str, list[str]] = {}
    for shard, sample_id in batch.sample_ids:
        by_shard.setdefault(shard, []).append(sample_id)
    samples: list[Sample] = []
    for shard, ids in by_shard.items():
        samples += pool.samples(shard, ids, segmented(signals))
    started = time.perf_counter()
    # Values recorded by a training run are looked up, and that run may not exist yet.
    request = replace(request_for(target, signals), in_run=False)
    if base and (request.along or request.base_likelihoods):
        request = _at_the_base(request)
    if request.perturbed:
        # Measure at the base model only: each perturbed checkpoint takes the same time.
        request = replace(request, perturbed=False, prefix_losses=PrefixWindows((LATE,)))
    results = [result for part in scorer.measure(samples, request) for result in part]
    return time.perf_counter() - started, results


def _at_the_base(request: Request) -> Request:
    """Return a request that measures once, at the base model, what a missing run's checkpoints would measure.

    There are no Adam moments yet; the plain gradient needs the same backward pass.
    """
    way = request.on_the_way
    return replace(
        request.here,
        token_likelihoods=request.token_likelihoods or way.token_likelihoods or request.base_likelihoods,
        step_gradients=request.step_gradients or way.step_gradients,
        step_features=request.step_features,
        features=request.features or request.adam_features or way.features or way.adam_features,
        adam_features=None,
    )


def _add_sizes(probe: Probe, results: list[tuple[str, list[SampleSignals]]], target: Target) -> None:
    """Add the size of each signal's rows in Parquet."""
    by_signal: dict[SignalName, list[SampleSignals]] = {}
    for lacking, found in results:
        for signal in signals_in(lacking):
            by_signal.setdefault(signal, []).extend(found)
    for signal, found in by_signal.items():
        asked = request_for(target, (signal,))
        if asked.perturbed or asked.in_run or (probe.base and (asked.along or asked.base_likelihoods)):
            # The probe measured a substitute, not this signal.
            continue
        empty = len(parquet_bytes(SIGNALS[signal].frame([]), {}))
        probe.part_bytes[signal] = empty
        probe.row_bytes[signal] = (len(parquet_bytes(SIGNALS[signal].frame(found), {})) - empty) / len(found)
