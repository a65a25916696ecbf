"""Measure shards: all missing signals of a sample in one pass, and nothing twice, even after a kill.

Samples are grouped by the set of signals that they lack, and each group is one request to the pass.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain

import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.signals.carrying import carry_over, earlier_store
from curation_assets.signals.engine import Engine, Lack, Stores, open_engine, stores_of
from curation_assets.signals.parts import Done
from curation_assets.signals.store import ShardMeasurement, SignalStore, shard_record_path
from curation_assets.tables.signals import SEGMENTED_SIGNALS, SIGNALS, SignalName
from curation_assets.workspace.fingerprints import image_limits_key, input_fingerprint
from curation_assets.workspace.limits import Allowance, Meter, launched_allowance
from curation_assets.workspace.workspace import Workspace
from curation_resources.progress import track

logger = logging.getLogger("curation")


PLACE = ("sample_id", "row", "candidate")
"""Columns that say where a sample stands in its shard."""


@dataclass(frozen=True)
class ShardSamples:
    """The distinct samples of a shard, their segments, and the fingerprints of both tables.

    `places` are sample_id, row and candidate of every row, duplicates included; empty for a validation set.
    """

    rows: pl.DataFrame
    steps: pl.DataFrame
    corpus_fingerprint: str
    steps_fingerprint: str
    places: pl.DataFrame = field(default_factory=lambda: tables.RAW_CORPUS.empty().select(PLACE))

    def input_fingerprint(self, signal: SignalName) -> str:
        """Return the fingerprint of the table that a signal's record is valid for."""
        return self.steps_fingerprint if signal in SEGMENTED_SIGNALS else self.corpus_fingerprint


@dataclass
class Visit:
    """The progress of one visit to a shard or a validation set.

    Attributes:
        name: the name of the shard or set.
        samples: all of its samples, reduced to their ids.
        missing: by signal, the samples that had no row when the visit began.
        wanted: number of samples that lack any signal.
        done: number of these that are measured.
        tokens: tokens run for them.
        committed: whether all of these are stored.
        left: whether the allowance ran out before all of them were measured.
        after: ongoing visits that measure samples which this one shares.
        ended: whether the visit is finished and has been yielded.
        started: when it began.
        bar: its progress bar, closed when it ends.
    """

    name: str
    samples: ShardSamples
    missing: Mapping[SignalName, set[str]]
    wanted: int = 0
    done: int = 0
    tokens: int = 0
    committed: bool = True
    left: bool = False
    after: list[Visit] = field(default_factory=list)
    ended: bool = False
    started: float = field(default_factory=time.monotonic)
    bar: ExitStack = field(default_factory=ExitStack)

    @property
    def finished(self) -> bool:
        """True if nothing is missing any more."""
        return (
            not self.left and self.committed and self.done >= self.wanted and all(other.ended for other in self.after)
        )


class Visits:
    """Visits to shards in order; an engine may start the next one before the last is finished.

    Args:
        target: the target to measure with.
        inputs: names and samples, read on demand.
        stores: the store of each signal.
        engine: the engine that measures.
        allowance: the limits on measuring.
    """

    def __init__(
        self,
        target: Target,
        inputs: Iterable[tuple[str, ShardSamples]],
        stores: Stores,
        engine: Engine,
        allowance: Allowance,
    ) -> None:
        self._target, self._inputs, self._stores = target, inputs, stores
        self._engine, self._allowance = engine, allowance
        self._open: dict[str, Visit] = {}
        self._meter: Meter | None = None

    def run(self) -> Iterator[Visit]:
        """Measure all inputs and yield finished visits. Visits cut short by the allowance are logged instead."""
        lacks = self._lacks()
        try:
            for lack in lacks:
                if lack is not None:
                    break
                # Nothing is missing here: yield it without waiting for a model to load.
                yield from self._finished()
            else:
                return
            rest = (one for one in lacks if one is not None)
            with closing(self._engine.measure(chain([lack], rest))) as stream:
                for lack, done in stream:
                    # An engine may report on a shard once more after its last sample.
                    if lack.shard in self._open:
                        self._note(self._open[lack.shard], done)
                    yield from self._finished()
                    if self._allowance.reached():
                        break
            for visit in self._open.values():
                # Closing the engine has committed everything it had.
                visit.committed = True
            yield from self._finished()
            for visit in self._open.values():
                self._leave(visit)
            # Shards without missing signals finish even if the allowance is spent.
            for unmeasured in lacks:
                assert unmeasured is None, f"{unmeasured} would be measured although the allowance is spent"
                yield from self._finished()
            yield from self._finished()
        finally:
            for visit in self._open.values():
                visit.bar.close()
            self._allowance.settle()

    def _lacks(self) -> Iterator[Lack | None]:
        """Yield the missing samples shard by shard, and None after a shard with nothing to measure."""
        for name, samples in self._inputs:
            missing = {signal: store.missing(samples.rows["sample_id"]) for signal, store in self._stores.items()}
            ids = replace(samples, rows=samples.rows.select("sample_id"), steps=samples.steps.clear())
            visit = Visit(name, ids, missing)
            self._leave_to_others(visit)
            self._open[name] = visit
            groups = groups_by_missing(samples.rows["sample_id"], visit.missing)
            visit.wanted = sum(map(len, groups.values()))
            if groups and self._allowance.reached():
                self._leave(visit)
            if not groups or visit.left:
                yield None
                continue
            progress = visit.bar.enter_context(track(f"{self._target.name}: measuring {name}", visit.wanted))
            if self._meter is None:
                self._meter = Meter(self._allowance, lambda: self._engine.device_count)
            for lacking, sample_ids in groups.items():
                rows = samples.rows.filter(pl.col("sample_id").is_in(sample_ids))
                if not visit.left:
                    yield Lack(name, lacking, rows, samples.steps if lacking & SEGMENTED_SIGNALS else None, progress)

    def _leave_to_others(self, visit: Visit) -> None:
        """Skip what an ongoing visit measures already; this visit then ends after that one."""
        for other in self._open.values():
            if other.left:
                continue
            shared = {signal: ids & other.missing[signal] for signal, ids in visit.missing.items()}
            if any(shared.values()):
                visit.missing = {signal: ids - shared[signal] for signal, ids in visit.missing.items()}
                visit.after.append(other)

    def _note(self, visit: Visit, done: Done) -> None:
        visit.done += done.samples
        visit.tokens += done.tokens
        visit.committed = done.committed
        assert self._meter is not None
        self._meter.batch(done.tokens)
        if done.committed:
            self._allowance.settle()

    def _leave(self, visit: Visit) -> None:
        """End a visit because the allowance ran out; what was measured is kept."""
        if not visit.finished and not visit.left:
            visit.left = True
            error = self._allowance.leave(self._target.name, visit.name, visit.done, visit.tokens)
            logger.info("%s: %s", self._target.name, error)

    def _finished(self) -> Iterator[Visit]:
        """Yield the visits that have finished."""
        for name, visit in list(self._open.items()):
            if visit.finished:
                del self._open[name]
                visit.ended = True
                visit.bar.close()
                yield visit


def measure_shards(
    workspace: Workspace, target: Target, shards: Sequence[str], signals: Sequence[SignalName]
) -> Iterator[dict[SignalName, ShardMeasurement]]:
    """Measure the missing signals of every sample of the shards.

    Rows are committed in parts every `engine.part_seconds`, and on interruption. A shard's records are written last, so
    a shard without records is requested again and resumes where it stopped. Shards that the allowance
    (`curation_assets.workspace.limits`) does not cover are skipped.
    """
    stores = stores_of(workspace, target, signals)
    segmented = not SEGMENTED_SIGNALS.isdisjoint(stores)

    found = {signal: earlier_store(workspace, target, signal) for signal in stores}
    earlier = [(store, stores[signal]) for signal, store in found.items() if store is not None]

    def inputs() -> Iterator[tuple[str, ShardSamples]]:
        for shard in shards:
            carry_over(workspace, shard, earlier)
            yield shard, read_shard_samples(workspace, shard, segmented)

    with open_engine(workspace, target, stores) as engine:
        for visit in measure_all(workspace, target, inputs(), stores, engine):
            records = records_of(workspace, target, visit, stores, engine)
            for signal, record in records.items():
                workspace.warehouse.write_json(shard_record_path(stores[signal].folder, visit.name), asdict(record))
            yield records


def measure_all(
    workspace: Workspace,
    target: Target,
    inputs: Iterable[tuple[str, ShardSamples]],
    stores: Stores,
    engine: Engine,
) -> Iterator[Visit]:
    """Measure what is missing of shards or validation sets, by name; yield finished visits."""
    allowance = workspace.allowance or launched_allowance(workspace.settings.limits, workspace.warehouse)
    for visit in Visits(target, inputs, stores, engine, allowance).run():
        for store in stores.values():
            store.compact(visit.samples.rows["sample_id"])
        yield visit


def records_of(
    workspace: Workspace, target: Target, visit: Visit, stores: Stores, engine: Engine
) -> dict[SignalName, ShardMeasurement]:
    """Return the records of a visit, by signal."""
    return {signal: _record(workspace, target, signal, visit, store, engine) for signal, store in stores.items()}


def read_shard_samples(workspace: Workspace, shard: str, segmented: bool) -> ShardSamples:
    """Return the distinct samples of a shard and, if requested, their segments.

    All are empty for a shard whose file disappeared before it was ever read.
    """
    corpus_path = f"{tables.raw_corpus_dir()}/{shard}.parquet"
    corpus_facts = workspace.warehouse.table_metadata(corpus_path)
    if not corpus_facts:
        return ShardSamples(tables.RAW_CORPUS.empty(), tables.SEGMENTED_STEPS.empty(), "", "")
    corpus = workspace.warehouse.read_table(corpus_path)
    steps, steps_fingerprint = tables.SEGMENTED_STEPS.empty(), ""
    if segmented:
        path = f"{tables.segmented_steps_dir()}/{shard}.parquet"
        steps = workspace.warehouse.read_table(path)
        steps_fingerprint = input_fingerprint(workspace.warehouse.table_metadata(path))
    rows = corpus.unique("sample_id", keep="first", maintain_order=True)
    return ShardSamples(rows, steps, input_fingerprint(corpus_facts), steps_fingerprint, corpus.select(PLACE))


def groups_by_missing(
    sample_ids: pl.Series, missing: Mapping[SignalName, set[str]]
) -> dict[frozenset[SignalName], list[str]]:
    """Group sample_ids, in order, by the set of signals that they lack; omit those that lack none."""
    groups: dict[frozenset[SignalName], list[str]] = {}
    for sample_id in sample_ids:
        lacking = frozenset(signal for signal, ids in missing.items() if sample_id in ids)
        if lacking:
            groups.setdefault(lacking, []).append(sample_id)
    return groups


def _record(
    workspace: Workspace, target: Target, signal: SignalName, visit: Visit, store: SignalStore, engine: Engine
) -> ShardMeasurement:
    ids = visit.samples.rows["sample_id"]
    stored = store.rows(ids)
    table = SIGNALS[signal].table.empty() if stored is None else stored
    tokens = table["tokens"].cast(pl.Int64).sum() if "tokens" in table.columns else 0
    parts, measured = store.parts_of(ids), len(visit.missing[signal])
    return ShardMeasurement(
        shard=visit.name,
        signal=signal,
        signal_fingerprint=store.fingerprint,
        input_fingerprint=visit.samples.input_fingerprint(signal),
        image_limits=image_limits_key(workspace, target),
        rows=len(ids),
        measured=measured,
        skipped=len(ids) - measured,
        without_value=SIGNALS[signal].reasons(table),
        samples_visited=visit.done,
        tokens_run=visit.tokens,
        tokens=int(tokens),
        seconds=round(time.monotonic() - visit.started, 3),
        finished=datetime.now(UTC).isoformat(),
        device=engine.device_name() if visit.tokens else "",
        parts=parts,
        bytes=store.size_of(parts),
        left_out=store.left_out(ids),
    )
