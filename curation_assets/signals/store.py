"""Where signals are kept: the rows of each under its fingerprint, and a record a shard that says it is done.

Rows of samples that could not be measured for a reason outside the sample (an image that the limits of
`corpus.images` keep closed, that is not there now, or is another one now; a judge that would not answer or talked
nonsense) lie apart, by these limits (of a judge by `endpoint.ask_again`): other limits measure these samples and no
others.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.workspace.fingerprints import (
    BASE_ROLE,
    SEGMENTED_SIGNALS,
    WARMUP_ROLE,
    image_limits_key,
    input_fingerprint,
    signal_fingerprint,
)
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from curation_resources.sections import SignalName
from curation_resources.storage.digests import digest
from curation_resources.storage.part_store import Measurements
from curation_resources.storage.warehouse import Warehouse

IMAGE_REASONS = ("image_missing", "image_changed", "image_remote", "image_unreachable", "image_too_large")
OUTSIDE_REASONS = (*IMAGE_REASONS, "refused_by_endpoint", "unparsed_reply")


class MeasuringError(UserError):
    """A target cannot be measured yet."""


@dataclass(frozen=True)
class ShardMeasurement:
    """What measuring one signal of one shard did.

    Attributes:
        shard: the shard.
        signal: the signal.
        signal_fingerprint: what it was measured under.
        input_fingerprint: of the shard's table that the record holds for (`input_fingerprint`), and no other.
        image_limits: the limits on images that the record holds for, and no others.
        rows: distinct samples of the shard.
        measured: samples whose signal was measured now.
        skipped: samples whose signal had been measured before.
        without_value: samples of the shard whose signal could not be measured, by reason.
        samples_visited: samples of which any signal was measured in this visit to the shard.
        tokens_run: tokens run through the model in this visit, for all signals together.
        tokens: tokens behind all the shard's samples, whenever they were measured; 0 if the table has none.
        seconds: time spent in this visit.
        finished: when the visit ended, so that two visits that did the same are told apart.
        device: what it ran on; empty if nothing had to run.
        parts: the parts that hold the shard's samples, named by the hash of their bytes: without one of them the record
            holds no longer.
        bytes: of these parts, which may hold samples of other shards too.
        left_out: digest of the shard's samples that are left out, and why (`SignalStore.left_out`).
    """

    shard: str
    signal: SignalName
    signal_fingerprint: str
    input_fingerprint: str
    image_limits: str
    rows: int
    measured: int
    skipped: int
    without_value: dict[str, int]
    samples_visited: int
    tokens_run: int
    tokens: int
    seconds: float
    finished: str
    device: str
    parts: list[str]
    bytes: int
    left_out: str


def role_of(target: Target) -> str:
    """The part that the measured checkpoint plays."""
    return BASE_ROLE if target.warmup == "none" else WARMUP_ROLE


def signal_dir(workspace: Workspace, target: Target, signal: SignalName) -> str | None:
    """Folder of a signal's current table; None while something that it is measured at is not there."""
    fingerprint = signal_fingerprint(workspace, target, signal)
    return None if fingerprint is None else tables.signal_dir(target.name, role_of(target), signal, fingerprint)


def shard_record_path(folder: str, shard: str) -> str:
    """Where a shard's `ShardMeasurement` is kept; it is written after all of the shard's rows."""
    return f"{folder}/shards/{shard}.json"


def shard_records(workspace: Workspace, folder: str | None) -> dict[str, dict[str, Any]]:
    """The records of all shards of a signal's folder, as `ShardMeasurement` has them."""
    return workspace.warehouse.folder_documents(f"{folder}/shards") if folder else {}


def record_holds(
    record: Mapping[str, Any] | None, input_fingerprint: str | None, image_limits: str, parts: Set[str]
) -> bool:
    """Whether a record says that all is measured of what is there now, and the parts that hold it are there."""
    return (
        record is not None
        and (record["input_fingerprint"], record["image_limits"]) == (input_fingerprint, image_limits)
        and parts >= set(record["parts"])
    )


def recorded_left_out(workspace: Workspace, folder: str | None, shard: str) -> str:
    """What the record of a shard says of samples that are left out; empty if there is no record of any."""
    record = workspace.warehouse.read_json(shard_record_path(folder, shard)) if folder else None
    return "" if record is None else str(record["left_out"])


def input_fingerprints(workspace: Workspace, signal: SignalName) -> dict[str, str]:
    """By shard, the fingerprint of the table that a signal's record holds for.

    That is `segmented_steps`, or `raw_corpus` for a signal that does not rest on segments.
    """
    folder = tables.segmented_steps_dir() if signal in SEGMENTED_SIGNALS else tables.raw_corpus_dir()
    stored = workspace.warehouse.folder_metadata(folder)
    return {shard: input_fingerprint(facts) for shard, facts in stored.items() if "fingerprint" in facts}


class SignalStore:
    """The rows of one signal under one fingerprint, as the limits on images are now."""

    def __init__(self, warehouse: Warehouse, folder: str, image_limits: str) -> None:
        self.folder = folder
        self._warehouse = warehouse
        self._measured = Measurements(warehouse, folder)
        self._left_out = Measurements(warehouse, left_out_dir(folder, image_limits))

    @property
    def fingerprint(self) -> str:
        """What the rows were measured under: the folder's name."""
        return self.folder.rsplit("/", 1)[-1]

    @classmethod
    def of(cls, workspace: Workspace, target: Target, signal: SignalName) -> SignalStore:
        """The store of a target's signal.

        Raises:
            MeasuringError: the target's warm-up has not been trained, or how strong its random perturbation is has not
                been searched for.
        """
        folder = signal_dir(workspace, target, signal)
        if folder is None and target.warmup != "none" and signal_dir(workspace, target, "likelihoods") is None:
            raise MeasuringError(
                f"the warm-up of target {target.name} has not been trained: materialize "
                f"{target.name}/warmup_checkpoint, or use `curate run`"
            )
        if folder is None:
            raise MeasuringError(
                f"the strength of target {target.name}'s random perturbation is not known: materialize "
                f"{target.name}/perturbation, use `curate run`, or set perturbation.sigma"
            )
        return cls(workspace.warehouse, folder, image_limits_key(workspace, target))

    def append(self, frame: pl.DataFrame) -> list[str]:
        """Commit rows, those that other limits on images might have measured apart from the others; gives the paths."""
        outside = pl.any_horizontal(pl.col("flags").list.contains(reason) for reason in OUTSIDE_REASONS)
        found = ((self._measured, frame.filter(~outside)), (self._left_out, frame.filter(outside)))
        return [store.path(store.append(rows)) for store, rows in found if len(rows)]

    def missing(self, sample_ids: pl.Series) -> set[str]:
        """Those of the samples that have no row."""
        return self._measured.missing(sample_ids) & self._left_out.missing(sample_ids)

    def rows(self, sample_ids: pl.Series) -> pl.DataFrame | None:
        """The rows of these samples, in order of sample_id; None if there is none of any sample."""
        # If two processes saw different things of a sample, the measurement counts.
        rest = self._not_measured(sample_ids)
        asked = [(self._measured, sample_ids), *([(self._left_out, rest)] if len(rest) else [])]
        found = [rows for store, ids in asked if (rows := store.rows(ids)) is not None]
        return pl.concat(found).sort("sample_id") if found else None

    def _not_measured(self, sample_ids: pl.Series) -> pl.Series:
        """Those of the samples that may be left out."""
        measured = self._measured.held(sample_ids)["sample_id"]
        return sample_ids.filter(~sample_ids.is_in(measured.implode()))

    def parts(self) -> set[str]:
        """Names of all parts."""
        return self._measured.names() | self._left_out.names()

    def compact(self, sample_ids: pl.Series) -> None:
        """Make one part of the many that measuring these samples left."""
        self._measured.compact(sample_ids)
        if len(rest := self._not_measured(sample_ids)):
            self._left_out.compact(rest)

    def size_of(self, parts: list[str]) -> int:
        """Bytes of these parts."""
        folders = (self._measured.folder, self._left_out.folder)
        names = [f"{name}.parquet" for name in parts]
        return sum(size for folder in folders for size in self._warehouse.storage.sizes(folder, names).values())

    def parts_of(self, sample_ids: pl.Series) -> list[str]:
        """Names of the parts that hold these samples, sorted."""
        rest = self._not_measured(sample_ids)
        return sorted({*self._measured.parts_of(sample_ids), *(self._left_out.parts_of(rest) if len(rest) else ())})

    def left_out(self, sample_ids: pl.Series) -> str:
        """Digest of those of the samples that are left out, and why; empty if none is."""
        rest = self._not_measured(sample_ids)
        rows = self._left_out.rows(rest.sort()) if len(rest) else None
        if rows is None or rows.is_empty():
            return ""
        return digest("left_out", rows.select("sample_id", "flags").rows())

    def scan(self) -> pl.LazyFrame | None:
        """Lazy frame over all rows; a sample may have several, of which the first counts."""
        folders = (self._measured.folder, self._left_out.folder)
        found = [frame for folder in folders if (frame := self._warehouse.scan(folder)) is not None]
        return pl.concat(found) if found else None


def left_out_dir(folder: str, image_limits: str) -> str:
    """Folder, below a signal's, of samples that could not be measured under these limits on images."""
    return f"{folder}/left_out/{image_limits}"
