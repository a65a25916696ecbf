"""Measure validation sets: the embeddings that a target's scores compare the pool with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from curation_assets import tables
from curation_assets.config.settings import Target
from curation_assets.corpus.held_out import stored_validation
from curation_assets.methods.method import ScoreSection
from curation_assets.methods.registry import method_of
from curation_assets.signals.engine import Engine, open_engine, stores_of
from curation_assets.signals.measure import ShardSamples, measure_all, records_of
from curation_assets.signals.store import MeasuringError, ShardMeasurement, SignalStore, record_holds
from curation_assets.tables.signals import SIGNALS, SignalName
from curation_assets.workspace.fingerprints import image_limits_key
from curation_assets.workspace.held_out_files import wanted_validation
from curation_assets.workspace.limits import LimitReachedError
from curation_assets.workspace.workspace import Workspace

Wanted = dict[str, list[SignalName]]


def validation_of(workspace: Workspace, target: Target) -> Wanted:
    """Return the signals that a target's scores need, by validation set."""
    wanted: Wanted = {}
    for score in workspace.settings.scores_of(target.name):
        for name in method_of(score).validation(score):
            signals = wanted.setdefault(name, [])
            signals += [signal for signal in method_of(score).validation_signals(score) if signal not in signals]
    return wanted


def validation_key(workspace: Workspace, target: Target) -> dict[str, str | None]:
    """Return the fingerprints of the stored sets that a target's scores need."""
    return {name: stored_validation(workspace, name) for name in validation_of(workspace, target)}


def sets_due(workspace: Workspace, target: Target) -> list[str]:
    """Return the sets needed by a target's scores that are outdated or not measured."""
    wanted = {name: workspace.settings.validation_set(name) for name in validation_of(workspace, target)}
    unread = [n for n, held in wanted.items() if stored_validation(workspace, n) != wanted_validation(workspace, held)]
    unmeasured = _unmeasured(workspace, target)
    return [name for name in wanted if name in unread or name in unmeasured]


def _unmeasured(workspace: Workspace, target: Target) -> list[str]:
    """Return the sets with a needed signal that is not measured for the stored version of the set."""
    found = []
    for name, signals in validation_of(workspace, target).items():
        limits = image_limits_key(workspace, target)
        stored = stored_validation(workspace, name)
        stores = [SignalStore.of(workspace, target, signal) for signal in signals]
        records = [workspace.warehouse.read_json(_record_path(store.folder, name)) for store in stores]
        pairs = zip(records, stores, strict=True)
        if not all(record_holds(record, stored, limits, store.parts()) for record, store in pairs):
            found.append(name)
    return found


def validation_state(workspace: Workspace, target: Target) -> list[object]:
    """Return the state that decides whether a run over validation sets would differ from the last one.

    Raises:
        ValidationSetError: the file of a set is missing.
    """
    state: list[object] = [image_limits_key(workspace, target)]
    for name, signals in validation_of(workspace, target).items():
        wanted = wanted_validation(workspace, workspace.settings.validation_set(name))
        state += [name, wanted, stored_validation(workspace, name)]
        # A record includes the time at which it was made.
        folders = [SignalStore.of(workspace, target, signal).folder for signal in signals]
        state += [(folder, workspace.warehouse.read_json(_record_path(folder, name))) for folder in folders]
    return state


def measure_validation(workspace: Workspace, target: Target) -> dict[str, dict[SignalName, ShardMeasurement]]:
    """Measure what is missing of the sets that a target's scores need; return the records by set and signal.

    Measured sets are not visited, so their records keep the cost of the measurement.

    Raises:
        LimitReachedError: the allowance ran out before all sets were measured; what was measured is kept.
    """
    wanted, due = validation_of(workspace, target), _unmeasured(workspace, target)
    stores = stores_of(workspace, target, [signal for name in due for signal in wanted[name]])
    with open_engine(workspace, target, stores) as engine:
        return {name: _measure_set(workspace, target, name, wanted[name], engine) for name in due}


def _measure_set(
    workspace: Workspace, target: Target, name: str, signals: Sequence[SignalName], engine: Engine
) -> dict[SignalName, ShardMeasurement]:
    """Measure one set; return the records by signal.

    Raises:
        LimitReachedError: the allowance ran out before the set was measured; what was measured is kept.
    """
    stores = stores_of(workspace, target, signals)
    fingerprint = str(stored_validation(workspace, name))
    table = workspace.warehouse.read_table(tables.validation_path(name))
    rows = table.unique("sample_id", keep="first", maintain_order=True)
    samples = ShardSamples(rows, tables.SEGMENTED_STEPS.empty(), fingerprint, fingerprint)
    done: dict[SignalName, ShardMeasurement] | None = None
    for visit in measure_all(workspace, target, [(f"validation {name}", samples)], stores, engine):
        done = records_of(workspace, target, visit, stores, engine)
        for signal, record in done.items():
            workspace.warehouse.write_json(_record_path(stores[signal].folder, name), asdict(record))
    if done is not None:
        return done
    raise LimitReachedError(f"{target.name}: the allowance under limits in curation.yaml ran out before set {name}")


def validation_vectors(workspace: Workspace, target: Target, score: ScoreSection) -> dict[str, NDArray[np.float32]]:
    """Return the vectors [M, d] of the sets that a score compares with, in row order.

    Raises:
        MeasuringError: they have not been measured.
    """
    return {name: _vectors_of(workspace, target, name, score) for name in method_of(score).validation(score)}


def _vectors_of(workspace: Workspace, target: Target, name: str, score: ScoreSection) -> NDArray[np.float32]:
    """Return the vectors [M, d] of one set that a score compares with, in row order.

    Raises:
        MeasuringError: some have not been measured, or none could be measured.
    """
    scan = workspace.warehouse.scan_table(tables.validation_path(name))
    table = tables.RAW_CORPUS.empty().lazy() if scan is None else scan
    ids = table.select("sample_id").unique(maintain_order=True).collect()
    method = method_of(score)
    signal = method.validation_signals(score)[0]
    stored = SignalStore.of(workspace, target, signal).rows(ids["sample_id"])
    frame = SIGNALS[signal].table.empty() if stored is None else stored
    joined = ids.join(frame, on="sample_id", how="inner", maintain_order="left")
    vectors = method.to_vectors(joined.drop_nulls(SIGNALS[signal].value))
    if len(joined) < len(ids):
        raise MeasuringError(
            f"{signal} of target {target.name} is measured for only {len(joined)} of {len(ids)} samples of validation "
            f"set {name}. Run `curate run`."
        )
    if not len(vectors):
        raise MeasuringError(
            f"none of the {len(ids)} samples of validation set {name} has a value of {signal} for target {target.name} "
            f"(column flags of {signal} says why). Correct the set's file."
        )
    return vectors


def _record_path(folder: str, name: str) -> str:
    return f"{folder}/validation/{name}.json"
