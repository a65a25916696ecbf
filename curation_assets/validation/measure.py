"""Measuring validation sets: the embeddings that a target's scores compare the pool with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curation_assets import tables
from curation_assets.fingerprints import image_limits_key
from curation_assets.scores.method import ScoreSection
from curation_assets.scores.registry import method_of
from curation_assets.sections import SignalName
from curation_assets.settings import Target
from curation_assets.signals.catalog import SIGNALS
from curation_assets.signals.measure import ShardSamples, make_scorer, measure_samples
from curation_assets.signals.store import MeasuringError, ShardMeasurement, SignalStore
from curation_assets.subsets.vectors import matrix
from curation_assets.validation.sets import stored_validation, wanted_validation
from curation_assets.workspace import Workspace

Wanted = dict[str, list[SignalName]]


def validation_of(workspace: Workspace, target: Target) -> Wanted:
    """By validation set, the signals of it that a target's scores look at."""
    wanted: Wanted = {}
    for score in workspace.settings.scores_of(target.name):
        for name in method_of(score).validation(score):
            signals = wanted.setdefault(name, [])
            signals += [signal for signal in method_of(score).signals(score) if signal not in signals]
    return wanted


def validation_key(workspace: Workspace, target: Target) -> dict[str, str | None]:
    """Fingerprints of the stored sets that a target's scores look at."""
    return {name: stored_validation(workspace, name) for name in validation_of(workspace, target)}


def sets_due(workspace: Workspace, target: Target) -> list[str]:
    """Sets that a target's scores look at and that are not read as they are now, or not measured."""
    due = []
    for name, signals in validation_of(workspace, target).items():
        stored = stored_validation(workspace, name)
        if stored != wanted_validation(workspace, workspace.settings.validation_set(name)):
            due.append(name)
            continue
        for signal in signals:
            record = _record(workspace, target, signal, name)
            if record is None or not _holds(workspace, target, record, stored):
                due.append(name)
                break
    return due


def validation_state(workspace: Workspace, target: Target) -> list[object]:
    """All that says whether a run over validation sets is another one than the last: what is wanted and what is there.

    Raises:
        ValidationSetError: the file of a set is not there.
    """
    state: list[object] = [image_limits_key(workspace, target)]
    for name, signals in validation_of(workspace, target).items():
        wanted = wanted_validation(workspace, workspace.settings.validation_set(name))
        state += [name, wanted, stored_validation(workspace, name)]
        # A record says when it was made.
        state += [(SignalStore.of(workspace, target, s).folder, _record(workspace, target, s, name)) for s in signals]
    return state


def measure_validation(workspace: Workspace, target: Target) -> dict[str, dict[SignalName, ShardMeasurement]]:
    """Measure what is not stored yet of the sets that a target's scores look at; by set and signal, what was done."""
    done: dict[str, dict[SignalName, ShardMeasurement]] = {}
    with make_scorer(workspace, target) as scorer:
        for name, signals in validation_of(workspace, target).items():
            stores = {signal: SignalStore.of(workspace, target, signal) for signal in signals}
            fingerprint = str(stored_validation(workspace, name))
            rows = workspace.warehouse.read_table(tables.validation_path(name)).unique(
                "sample_id", keep="first", maintain_order=True
            )
            samples = ShardSamples(rows, tables.SEGMENTED_STEPS.empty(), fingerprint, fingerprint)
            records = measure_samples(workspace, target, f"validation {name}", samples, stores, scorer)
            for signal, record in records.items():
                workspace.warehouse.write_json(_record_path(stores[signal].folder, name), asdict(record))
            done[name] = records
    return done


def tokens_of_last_visit(workspace: Workspace, target: Target) -> int:
    """Tokens that the last run over the sets that a target's scores look at passed through its model."""
    tokens = 0
    for name, signals in validation_of(workspace, target).items():
        # All signals of a set were measured in one visit, which each of their records tells of.
        record = _record(workspace, target, signals[0], name)
        tokens += 0 if record is None else int(record["tokens_run"])
    return tokens


def validation_vectors(workspace: Workspace, target: Target, score: ScoreSection) -> dict[str, NDArray[np.float32]]:
    """The embeddings [M, d] of the sets that a score compares with, in the order of their rows.

    Raises:
        MeasuringError: they have not been measured.
    """
    method = method_of(score)
    found = {}
    for name in method.validation(score):
        signal = method.signals(score)[0]
        rows = (
            workspace.warehouse.read_table(tables.validation_path(name)).select("sample_id").unique(maintain_order=True)
        )
        stored = SignalStore.of(workspace, target, signal).rows(rows["sample_id"])
        frame = SIGNALS[signal].table.empty() if stored is None else stored
        joined = rows.join(frame, on="sample_id", how="inner", maintain_order="left")
        vectors = matrix(joined.filter(pl.col("vector").is_not_null())["vector"])
        if not len(vectors):
            raise MeasuringError(f"validation set {name} has no {signal} of target {target.name}: use `curate run`")
        found[name] = vectors
    return found


def _record_path(folder: str, name: str) -> str:
    return f"{folder}/validation/{name}.json"


def _record(workspace: Workspace, target: Target, signal: SignalName, name: str) -> Mapping[str, Any] | None:
    store = SignalStore.of(workspace, target, signal)
    record: Mapping[str, Any] | None = workspace.warehouse.read_json(_record_path(store.folder, name))
    return record


def _holds(workspace: Workspace, target: Target, record: Mapping[str, Any], stored: str | None) -> bool:
    current = (stored, image_limits_key(workspace, target))
    return (record["input_fingerprint"], record["image_limits"]) == current
