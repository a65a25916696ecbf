"""Summarise the cost of past runs from the records of measured shards.

One visit to a shard measures several signals in one pass, and the record of each signal describes the whole visit.
Its tokens and seconds are therefore counted once for all of them. A record describes the last visit to its shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from curation_assets.config.settings import Target
from curation_assets.signals.store import SignalStore, signal_dir
from curation_assets.signals.warmup import warmup_checkpoint
from curation_assets.tables.signals import SignalName
from curation_assets.workspace.workspace import Workspace

ALONE: SignalName = "unconditional_likelihoods"
"""The signal that needs a pass of its own, over the responses alone."""

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
        seconds: time taken, without loading the model.
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


@dataclass(frozen=True)
class Visit:
    """One visit to a shard, reconstructed from the records of its signals."""

    shard: str
    signals: tuple[SignalName, ...]
    samples: int
    tokens: int
    seconds: float
    device: str


@dataclass(frozen=True)
class MeasuredWarmup:
    """A trained warm-up: number of training samples, optimizer steps, tokens over all epochs, and epochs."""

    samples: int
    steps: int
    tokens: int
    epochs: int


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


def measured_warmup(workspace: Workspace, target: Target) -> MeasuredWarmup | None:
    """Return the target's warm-up, if it has been trained."""
    checkpoint = None if target.warmup == "none" else warmup_checkpoint(workspace, target)
    if checkpoint is None:
        return None
    record = checkpoint.record
    return MeasuredWarmup(record["samples"], record["steps"], record["tokens"], record["recipe"]["epochs"])


def mean_length(workspace: Workspace, target: Target) -> float | None:
    """Return the mean tokens of a sample run with its prompt, according to the stored signal with the most samples."""
    most: tuple[int, float] | None = None
    for signal in workspace.settings.measured_signals(target):
        if signal == ALONE or signal_dir(workspace, target, signal) is None:
            continue
        stored = SignalStore.of(workspace, target, signal).scan()
        if stored is None:
            continue
        run = stored.filter(pl.col("tokens") > 0).select(pl.len(), mean=pl.col("tokens").mean()).collect()
        count, mean = run.row(0)
        if count and (most is None or count > most[0]):
            most = count, mean
    return None if most is None else most[1]


def stored_bytes(workspace: Workspace, target: Target, signal: SignalName) -> int:
    """Return the size of a signal's parts under its current fingerprint, in bytes."""
    folder = signal_dir(workspace, target, signal)
    files = [] if folder is None else workspace.warehouse.files(folder)
    return sum(file.size for file in files if file.name.endswith(".parquet"))


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
