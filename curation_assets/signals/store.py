"""Store signals: the rows of each under its fingerprint, and one record per shard once it is complete.

Samples that could not be measured for an external reason are stored separately: an image that the limits under
`corpus.images` exclude, or that is missing or has changed; a judge that refused to answer or replied nonsense. Their
folder is keyed by these limits (for a judge, by `endpoint.ask_again`), so other limits measure exactly these samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.tables.signals import SEGMENTED_SIGNALS, SignalName
from curation_assets.workspace.fingerprints import (
    BASE_ROLE,
    WARMUP_ROLE,
    image_limits_key,
    input_fingerprint,
    signal_fingerprint,
)
from curation_assets.workspace.versions import SEGMENTATION_VERSION
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from curation_resources.storage.digests import digest
from curation_resources.storage.part_store import Measurements
from curation_resources.storage.warehouse import Warehouse

IMAGE_REASONS = ("image_missing", "image_changed", "image_remote", "image_unreachable", "image_too_large")
OUTSIDE_REASONS = (*IMAGE_REASONS, "refused_by_endpoint", "unparsed_reply", "empty_answers")


class MeasuringError(UserError):
    """A target cannot be measured yet."""


@dataclass(frozen=True)
class ShardMeasurement:
    """The record of measuring one signal of one shard.

    Attributes:
        shard: the shard.
        signal: the signal.
        signal_fingerprint: the fingerprint that it was measured under.
        input_fingerprint: fingerprint of the shard's table that the record is valid for (`input_fingerprint`).
        image_limits: the limits on images that the record is valid for.
        rows: distinct samples of the shard.
        measured: samples whose signal was measured in this visit.
        skipped: samples whose signal had been measured before.
        without_value: samples of the shard whose signal could not be measured, by reason.
        samples_visited: samples with any signal measured in this visit.
        tokens_run: tokens run through the model in this visit, for all signals together.
        tokens: tokens behind all the shard's samples, whenever they were measured; 0 if the table has none.
        seconds: time spent in this visit.
        finished: when the visit ended, which distinguishes visits with equal results.
        device: the device used; empty if nothing had to run.
        parts: the parts that hold the shard's samples, named by the hash of their bytes; the record is invalid if
            one of them is missing.
        bytes: size of these parts, which may hold samples of other shards too.
        left_out: digest of the shard's samples that were left out and why (`SignalStore.left_out`).
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
    """Return the role of the measured checkpoint."""
    return BASE_ROLE if target.warmup == "none" else WARMUP_ROLE


def signal_dir(
    workspace: Workspace, target: Target, signal: SignalName, segmentation: int = SEGMENTATION_VERSION
) -> str | None:
    """Return the folder of a signal's table; None while a checkpoint that it depends on is missing.

    `segmentation` is the version that cut the steps: the current one, or an earlier one.
    """
    fingerprint = signal_fingerprint(workspace, target, signal, segmentation)
    return None if fingerprint is None else tables.signal_dir(target.name, role_of(target), signal, fingerprint)


def shard_record_path(folder: str, shard: str) -> str:
    """Return the path of a shard's `ShardMeasurement`, which is written after all of the shard's rows."""
    return f"{folder}/shards/{shard}.json"


def shard_records(workspace: Workspace, folder: str | None) -> dict[str, dict[str, Any]]:
    """Return the records of all shards in a signal's folder, as `ShardMeasurement` dictionaries."""
    return workspace.warehouse.folder_documents(f"{folder}/shards") if folder else {}


def record_holds(
    record: Mapping[str, Any] | None, input_fingerprint: str | None, image_limits: str, parts: Set[str]
) -> bool:
    """Return whether a record is valid for the current input and limits, and all of its parts exist."""
    return (
        record is not None
        and (record["input_fingerprint"], record["image_limits"]) == (input_fingerprint, image_limits)
        and parts >= set(record["parts"])
    )


def recorded_left_out(workspace: Workspace, folder: str | None, shard: str) -> str:
    """Return the digest of left-out samples in a shard's record; empty if there is none."""
    record = workspace.warehouse.read_json(shard_record_path(folder, shard)) if folder else None
    return "" if record is None else str(record["left_out"])


def input_fingerprints(workspace: Workspace, signal: SignalName) -> dict[str, str]:
    """Return, by shard, the fingerprint of the table that a signal's record is valid for.

    This is `segmented_steps`, or `raw_corpus` for a signal that does not depend on segments.
    """
    folder = tables.segmented_steps_dir() if signal in SEGMENTED_SIGNALS else tables.raw_corpus_dir()
    stored = workspace.warehouse.folder_metadata(folder)
    return {shard: input_fingerprint(facts) for shard, facts in stored.items() if "fingerprint" in facts}


class SignalStore:
    """The rows of one signal under one fingerprint, with the current limits on images."""

    def __init__(self, warehouse: Warehouse, folder: str, image_limits: str) -> None:
        self.folder = folder
        self._warehouse = warehouse
        self._measured = Measurements(warehouse, folder)
        self._left_out = Measurements(warehouse, left_out_dir(folder, image_limits))

    @property
    def fingerprint(self) -> str:
        """The fingerprint that the rows were measured under: the folder's name."""
        return self.folder.rsplit("/", 1)[-1]

    @classmethod
    def of(cls, workspace: Workspace, target: Target, signal: SignalName, place: str = "") -> SignalStore:
        """Return the store of a target's signal.

        Args:
            workspace: the configuration.
            target: the target.
            signal: the signal.
            place: where its folder is; empty: with the pool's.

        Raises:
            MeasuringError: the target's warm-up has not been trained, or the strength of its random perturbation is
                unknown.
        """
        folder = signal_dir(workspace, target, signal)
        if folder is None and target.warmup != "none" and signal_dir(workspace, target, "likelihoods") is None:
            raise MeasuringError(
                f"the warm-up of target {target.name} has not been trained. Materialize "
                f"{target.name}/warmup_checkpoint, or run `curate run`."
            )
        if folder is None:
            raise MeasuringError(
                f"the strength of target {target.name}'s random perturbation is unknown. Materialize "
                f"{target.name}/perturbation, run `curate run`, or set perturbation.sigma."
            )
        return cls(workspace.warehouse, place + folder, image_limits_key(workspace, target))

    def append(self, frame: pl.DataFrame) -> list[str]:
        """Commit rows and return the paths; rows that other image limits might measure are stored separately."""
        outside = pl.any_horizontal(pl.col("flags").list.contains(reason) for reason in OUTSIDE_REASONS)
        found = ((self._measured, frame.filter(~outside)), (self._left_out, frame.filter(outside)))
        return [store.path(store.append(rows)) for store, rows in found if len(rows)]

    def missing(self, sample_ids: pl.Series) -> set[str]:
        """Return the samples that have no row."""
        return self._measured.missing(sample_ids) & self._left_out.missing(sample_ids)

    def rows(self, sample_ids: pl.Series) -> pl.DataFrame | None:
        """Return the rows of these samples, ordered by sample_id; None if no sample has any row."""
        # If two processes disagree on a sample, the measurement takes precedence.
        rest = self._not_measured(sample_ids)
        asked = [(self._measured, sample_ids), *([(self._left_out, rest)] if len(rest) else [])]
        found = [rows for store, ids in asked if (rows := store.rows(ids)) is not None]
        return pl.concat(found).sort("sample_id") if found else None

    def _not_measured(self, sample_ids: pl.Series) -> pl.Series:
        """Return the samples without a measurement, which may be left out."""
        measured = self._measured.held(sample_ids)["sample_id"]
        return sample_ids.filter(~sample_ids.is_in(measured.implode()))

    def parts(self) -> set[str]:
        """Return the names of all parts."""
        return self._measured.names() | self._left_out.names()

    def compact(self, sample_ids: pl.Series) -> None:
        """Merge the many parts that measuring these samples produced into one."""
        self._measured.compact(sample_ids)
        if len(rest := self._not_measured(sample_ids)):
            self._left_out.compact(rest)

    def size_of(self, parts: list[str]) -> int:
        """Return the total size of these parts in bytes."""
        folders = (self._measured.folder, self._left_out.folder)
        names = [f"{name}.parquet" for name in parts]
        return sum(size for folder in folders for size in self._warehouse.storage.sizes(folder, names).values())

    def parts_of(self, sample_ids: pl.Series) -> list[str]:
        """Return the sorted names of the parts that hold these samples."""
        rest = self._not_measured(sample_ids)
        return sorted({*self._measured.parts_of(sample_ids), *(self._left_out.parts_of(rest) if len(rest) else ())})

    def left_out(self, sample_ids: pl.Series) -> str:
        """Return a digest of the left-out samples and their reasons; empty if there are none."""
        rest = self._not_measured(sample_ids)
        rows = self._left_out.rows(rest.sort()) if len(rest) else None
        if rows is None or rows.is_empty():
            return ""
        return digest("left_out", rows.select("sample_id", "flags").rows())

    def scan(self) -> pl.LazyFrame | None:
        """Return a lazy frame over all rows; if a sample has several, the first one counts."""
        folders = (self._measured.folder, self._left_out.folder)
        found = [frame for folder in folders if (frame := self._warehouse.scan(folder)) is not None]
        return pl.concat(found) if found else None


def left_out_dir(folder: str, image_limits: str) -> str:
    """Return the folder, inside a signal's, of samples that could not be measured under these limits on images."""
    return f"{folder}/left_out/{image_limits}"
