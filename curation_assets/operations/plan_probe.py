"""A probe: measure a few of a run's batches on the configured device, and discard the results."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field, replace

import polars as pl

from curation_assets.config.settings import Target
from curation_assets.operations.plan_pool import Pool
from curation_assets.operations.plan_tokens import TokenCount, segmented, signals_in
from curation_assets.signals.parts import tokens_run
from curation_assets.signals.requests import request_for
from curation_assets.signals.scorers import model_scorer
from curation_assets.tables.signal_rows import LATE
from curation_assets.tables.signals import SIGNALS, SignalName
from curation_assets.workspace.workspace import Workspace
from curation_resources.models.scorer import Scorer
from curation_resources.progress import track
from curation_resources.scoring.batching import plan_batches
from curation_resources.scoring.samples import PrefixWindows, Request, Sample, SampleSignals
from curation_resources.storage.warehouse import parquet_bytes

BATCHES = 8
"""Number of batches to measure, spread evenly over all of them, from long samples to short ones."""

SECONDS = 30.0
"""Time after which no further batch is started, not counting the first batch and loading the model."""

SEED = 0


@dataclass(frozen=True)
class Batch:
    """Samples that a run would measure together, with their shards and the signals that they lack."""

    lacking: str
    sample_ids: list[tuple[str, str]]


@dataclass
class Probe:
    """Timing and sizes from measuring a few batches.

    Attributes:
        device: the device used.
        devices: number of such devices that a run would use.
        base: whether the base model was used because the warm-up has not been trained.
        load_seconds: time to load the model, including the warm-up overhead of its first batch.
        seconds: time to measure the batches, including encoding.
        tokens: tokens of these batches.
        samples: samples of these batches.
        batches: number of batches measured.
        of_batches: number of batches to choose from.
        row_bytes: by signal, bytes per row in Parquet.
        part_bytes: by signal, bytes of a part without rows.
    """

    device: str
    devices: int
    base: bool
    load_seconds: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    samples: int = 0
    batches: int = 0
    of_batches: int = 0
    row_bytes: dict[SignalName, float] = field(default_factory=dict)
    part_bytes: dict[SignalName, int] = field(default_factory=dict)

    def seconds_for(self, tokens: int) -> float:
        """Return the time a run needs to measure this many tokens on all devices, without loading the model."""
        return self.seconds * tokens / (self.tokens * self.devices) if self.tokens else 0.0


def run_probe(workspace: Workspace, target: Target, pool: Pool, count: TokenCount, base: bool) -> Probe | None:
    """Measure a few of the batches that a run would make; store nothing.

    Args:
        workspace: the configuration.
        target: the target whose model measures.
        pool: the source of the samples.
        count: the tokens to run.
        base: measure with the base model because the warm-up has not been trained; it has the same shape.

    Returns:
        The timing, or None if there is nothing to run.

    Raises:
        ScoringError: the model cannot be used for measuring, or the device is missing.
    """
    if target.endpoint is not None:
        # Do not query a judge for a plan: it may cost money.
        return None
    batches = plan(count, workspace.settings.engine.batch_tokens)
    if not batches:
        return None
    from curation_resources.scoring.devices import devices_of  # noqa: PLC0415

    devices = devices_of(workspace.settings.engine.device)
    measured = target.model_copy(update={"warmup": "none"}) if base else target
    results: list[tuple[str, list[SampleSignals]]] = []
    # One device suffices to measure its speed; loading the model on all of them would only take longer.
    with Scorer(model_scorer(workspace, measured).spec, devices[0]) as scorer:
        probe = Probe(scorer.device_name(), len(devices), base, of_batches=len(batches))
        chosen = chosen_batches(batches)
        with track(f"{target.name}: probing {probe.device}", len(chosen)) as advance:
            first = _measure(scorer, target, pool, chosen[0], base)[0]
            for batch in chosen:
                seconds, found = _measure(scorer, target, pool, batch, base)
                if not probe.batches:
                    probe.load_seconds = max(0.0, first - seconds)
                results.append((batch.lacking, found))
                probe.seconds += seconds
                probe.tokens += sum(tokens_run(result) for result in found)
                probe.samples += len(found)
                probe.batches += 1
                advance(1)
                if probe.seconds > SECONDS:
                    break
    _weigh(probe, results, target)
    return probe


def plan(count: TokenCount, batch_tokens: int) -> list[Batch]:
    """Return the batches that a run would make of the encoded samples: shard by shard if all of them were encoded."""
    run = count.rows.filter(pl.col("forward") + pl.col("alone") > 0)
    kinds = ["shard", "lacking"] if count.exact else ["lacking"]
    batches = []
    for _, rows in run.group_by(kinds, maintain_order=True):
        keys = (rows["images"] > 0).to_list()
        ids = rows.select("shard", "sample_id").rows()
        for positions in plan_batches(rows["length"].to_list(), batch_tokens, keys):
            batches.append(Batch(rows["lacking"][0], [ids[position] for position in positions]))
    return batches


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


def _weigh(probe: Probe, results: list[tuple[str, list[SampleSignals]]], target: Target) -> None:
    """Measure the size of each signal's rows in Parquet."""
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
