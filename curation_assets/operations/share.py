"""Measure one share of the outstanding work in its own process, for clusters that start many, such as Slurm arrays.

Shares are cut by the amount of work, without communication between processes; each process reads only its own shards.
Measurements are stored as in any run. The next run finds nothing left to measure and records the result.
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
from curation_assets.signals.engine import open_engine, stores_of, work_of_rows
from curation_assets.signals.measure import ShardSamples, Visit, measure_all, read_shard_samples
from curation_assets.signals.store import MeasuringError
from curation_assets.tables.signals import SEGMENTED_SIGNALS
from curation_assets.workspace.fingerprints import base_digest
from curation_assets.workspace.limits import Allowance
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from curation_resources.storage.warehouse import TABLE


@dataclass(frozen=True)
class Share:
    """One of several equal shares.

    Attributes:
        number: the number of this share, counting from 1.
        of: the number of shares.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """Parse a share such as `3/16`.

        Raises:
            UserError: the text is not a share.
        """
        number, slash, of = text.partition("/")
        if slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of):
            return cls(int(number), int(of))
        raise UserError(f"{text!r} is not a share. Write its number and the number of shares: 1/16 up to 16/16.")

    def ends(self, total: int) -> tuple[int, int]:
        """Return the begin and end of this share in a total amount of work."""
        return total * (self.number - 1) // self.of, total * self.number // self.of


@dataclass
class ShareSummary:
    """The result of measuring a share for one target.

    Attributes:
        target: the target whose signals were measured.
        samples: samples of the share, in outstanding shards that it reached.
        stored: number of these that were already stored.
        measured: number of these that it measured.
        tokens: tokens run through the model.
        stopped: the limit that stopped it; None if it completed.
    """

    target: str
    samples: int = 0
    stored: int = 0
    measured: int = 0
    tokens: int = 0
    stopped: str | None = None


def measure_share(workspace: Workspace, share: Share) -> Iterator[ShareSummary]:
    """Measure a share of the outstanding work, target by target.

    Each share may use its part of `limits`.

    Raises:
        MeasuringError: a checkpoint is missing, or no shard has been read.
    """
    if not workspace.warehouse.names(tables.raw_corpus_dir()):
        raise MeasuringError("no shard has been read yet. Run `curate run --until checkpoints` first.")
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
    # Keep the order of all shards: other processes see the same one, whatever has been stored in the meantime.
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
    """Return the size of each shard's table in bytes, roughly proportional to its work."""
    names = [f"{shard}{TABLE}" for shard in shards]
    sizes = workspace.warehouse.storage.sizes(tables.raw_corpus_dir(), names)
    return {shard: sizes[name] for shard, name in zip(shards, names, strict=True)}


Between = tuple[str, tuple[int, int], tuple[int, int]]


def cut(sizes: Mapping[str, int], share: Share) -> Iterator[Between]:
    """Yield the shards that a share overlaps, in order, with its begin and end in each as fractions."""
    first, last = share.ends(sum(sizes.values()))
    start = 0
    for shard, size in sizes.items():
        begin, end = max(first, start) - start, min(last, start + size) - start
        if begin < end:
            yield shard, (begin, size), (end, size)
        start += size


def rows_between(rows: pl.DataFrame, begin: tuple[int, int], end: tuple[int, int]) -> pl.DataFrame:
    """Return the rows of `raw_corpus` between two fractions of their total work; consecutive ranges cover every row."""
    work = work_of_rows(rows)
    total, before, chosen = sum(work), 0, []
    for own in work:
        # A row belongs where it begins; a row without work at the very end counts as before the end.
        at = min(before, total - 1)
        chosen.append(begin[0] * total <= at * begin[1] and at * end[1] < end[0] * total if total else begin[0] == 0)
        before += own
    return rows.filter(pl.Series(chosen, dtype=pl.Boolean))
