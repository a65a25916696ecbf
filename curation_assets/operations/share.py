"""A share of what is due, measured by a process of its own: for clusters that start many (a Slurm array, say).

Shares are cut by how much there is to measure, without a word between the processes: each reads its own shards alone.
What a share measures is stored as any run stores it; the run that comes after finds nothing left to measure and
records it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import polars as pl

from curation_assets import tables
from curation_assets.config.running_settings import Limits
from curation_assets.config.settings import Target
from curation_assets.corpus.ingest import present_shards
from curation_assets.operations.stages import unmeasured_shards
from curation_assets.signals.engine import open_engine, work_of_rows
from curation_assets.signals.measure import ShardSamples, Visit, measure_all, read_shard_samples, stores_of
from curation_assets.signals.store import MeasuringError
from curation_assets.workspace.fingerprints import SEGMENTED_SIGNALS, base_digest
from curation_assets.workspace.limits import Allowance
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from curation_resources.storage.warehouse import TABLE


@dataclass(frozen=True)
class Share:
    """One of several even shares.

    Attributes:
        number: of the share, from 1 on.
        of: how many there are.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """From text as in `3/16`.

        Raises:
            UserError: it is none.
        """
        number, slash, of = text.partition("/")
        if slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of):
            return cls(int(number), int(of))
        raise UserError(f"{text!r} is no share: write its number and how many there are, as in 1/16 up to 16/16")

    def ends(self, total: int) -> tuple[int, int]:
        """Where it begins and ends, of so much."""
        return total * (self.number - 1) // self.of, total * self.number // self.of


@dataclass
class ShareSummary:
    """What a share came to.

    Attributes:
        target: whose signals.
        samples: of the share, in shards that were due and that it came to.
        stored: of these, before.
        measured: of these, now.
        tokens: that were run through the model.
        stopped: the limit at which it stopped; None if it went to its end.
    """

    target: str
    samples: int = 0
    stored: int = 0
    measured: int = 0
    tokens: int = 0
    stopped: str | None = None


def measure_share(workspace: Workspace, share: Share) -> Iterator[ShareSummary]:
    """Measure a share of what is due, target by target.

    Of `limits`, each share may spend its part.

    Raises:
        MeasuringError: a checkpoint is missing, or nothing has been read.
    """
    if not workspace.warehouse.names(tables.raw_corpus_dir()):
        raise MeasuringError("nothing has been read yet: use `curate run --until checkpoints` first")
    limits = workspace.settings.limits
    part = Limits(
        tokens=None if limits.tokens is None else ceil(limits.tokens / share.of),
        device_hours=None if limits.device_hours is None else limits.device_hours / share.of,
    )
    allowance = Allowance(part)
    workspace = replace(workspace, allowance=allowance)
    for target in workspace.settings.targets:
        base_digest(workspace, target, download=True)
        summary = ShareSummary(target.name)
        for visit in _measured(workspace, target, share, summary):
            summary.measured += visit.done
            summary.stored += len(visit.samples.rows) - visit.wanted
            summary.tokens += visit.tokens
        summary.measured += allowance.samples.get(target.name, 0)
        summary.tokens += allowance.tokens.get(target.name, 0)
        if any(name == target.name for name, _ in allowance.unfinished):
            summary.stopped = allowance.reached()
        yield summary


def _measured(workspace: Workspace, target: Target, share: Share, summary: ShareSummary) -> Iterator[Visit]:
    stores = stores_of(workspace, target, target.signals)
    present = present_shards(workspace)
    lacking = {shard for signal in target.signals for shard in unmeasured_shards(workspace, target, signal, present)}
    # The order of all: other processes see the same, whatever has been stored meanwhile.
    due = [shard for shard in present if shard in lacking]
    segmented = not SEGMENTED_SIGNALS.isdisjoint(stores)

    def inputs() -> Iterator[tuple[str, ShardSamples]]:
        for shard, begin, end in cut(shard_bytes(workspace, due), share):
            samples = read_shard_samples(workspace, shard, segmented)
            own = replace(samples, rows=rows_between(samples.rows, begin, end))
            summary.samples += len(own.rows)
            yield shard, own

    with open_engine(workspace, target, stores) as engine:
        yield from measure_all(workspace, target, inputs(), stores, engine)


def shard_bytes(workspace: Workspace, shards: Sequence[str]) -> dict[str, int]:
    """Bytes of the tables of shards, which are about in proportion to what there is to measure."""
    names = [f"{shard}{TABLE}" for shard in shards]
    sizes = workspace.warehouse.storage.sizes(tables.raw_corpus_dir(), names)
    return {shard: sizes[name] for shard, name in zip(shards, names, strict=True)}


Between = tuple[str, tuple[int, int], tuple[int, int]]


def cut(sizes: Mapping[str, int], share: Share) -> Iterator[Between]:
    """The shards that a share has a part of, in their order: where it begins and ends in each, as fractions."""
    first, last = share.ends(sum(sizes.values()))
    start = 0
    for shard, size in sizes.items():
        begin, end = max(first, start) - start, min(last, start + size) - start
        if begin < end:
            yield shard, (begin, size), (end, size)
        start += size


def rows_between(rows: pl.DataFrame, begin: tuple[int, int], end: tuple[int, int]) -> pl.DataFrame:
    """Rows of `raw_corpus` from one fraction of all their work to another; every row lies between some two of them."""
    work = work_of_rows(rows)
    total, before, chosen = sum(work), 0, []
    for own in work:
        # A row is where it begins; one of no work at the very end is before the end.
        at = min(before, total - 1)
        chosen.append(begin[0] * total <= at * begin[1] and at * end[1] < end[0] * total if total else begin[0] == 0)
        before += own
    return rows.filter(pl.Series(chosen, dtype=pl.Boolean))
