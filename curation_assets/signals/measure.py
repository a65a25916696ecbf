"""Measuring shards: of each sample only what is not stored yet, all of that in one pass, kill-proof.

Samples are grouped by the set of signals that they lack, and each group is one request to the pass.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from curation_assets import tables
from curation_assets.checkpoints.perturbation import (
    perturbed_request,
    perturbed_spec,
    search_sigma,
    wants_perturbation,
)
from curation_assets.checkpoints.warmup import trajectory_weights, warmup_checkpoint
from curation_assets.fingerprints import SEGMENTED_SIGNALS, image_limits_key, input_fingerprint, judge_spec, sigma_of
from curation_assets.limits import LimitReachedError, Meter, current_allowance
from curation_assets.progress import track
from curation_assets.samples import samples_of
from curation_assets.sections import SignalName
from curation_assets.settings import Target
from curation_assets.signals.catalog import SIGNALS, request_for
from curation_assets.signals.store import MeasuringError, ShardMeasurement, SignalStore, shard_record_path
from curation_assets.workspace import Workspace
from resources.judge import JudgeScorer
from resources.quiet import quieten_transformers
from resources.ray_engine import RayOptions
from resources.scorer import Scorer
from resources.scoring.images import ImageLimits
from resources.scoring.samples import SampleSignals
from resources.scoring.spec import PassSpec
from resources.trainer import step_folder
from resources.training.files import TRAINED_ON

MIB = 2**20
logger = logging.getLogger("curation")


@dataclass(frozen=True)
class ShardSamples:
    """The distinct samples of a shard, their segments, and the fingerprints of both tables."""

    rows: pl.DataFrame
    steps: pl.DataFrame
    corpus_fingerprint: str
    steps_fingerprint: str

    def input_fingerprint(self, signal: SignalName) -> str:
        """Of the table that a signal's record holds for."""
        return self.steps_fingerprint if signal in SEGMENTED_SIGNALS else self.corpus_fingerprint


@dataclass
class Visit:
    """What one visit to a shard has measured so far."""

    started: float = field(default_factory=time.monotonic)
    samples: int = 0
    tokens: int = 0


def make_scorer(workspace: Workspace, target: Target) -> Scorer | JudgeScorer:
    """What measures a target's signals: a judge that is asked, else its model."""
    if target.endpoint is not None:
        return JudgeScorer(judge_spec(target))
    return model_scorer(workspace, target)


def model_scorer(workspace: Workspace, target: Target) -> Scorer:
    """The scorer of a target: its base model with its warm-up, if it has one.

    Raises:
        MeasuringError: the warm-up has not been trained.
    """
    base, kind = workspace.model_folder(target), target.kind
    assert kind != "judge", "a judge is asked"
    model, adapter = base, None
    trajectory: tuple[Path, ...] = ()
    weights: tuple[float, ...] = ()
    trained_on: Path | None = None
    if target.warmup != "none":
        checkpoint = warmup_checkpoint(workspace, target)
        if checkpoint is None:
            raise MeasuringError(f"the warm-up of target {target.name} has not been trained: use `curate run`")
        model, adapter = checkpoint.weights(workspace, base)
        folder = workspace.warehouse.local(checkpoint.folder)
        trajectory = tuple(step_folder(folder, step) for step in checkpoint.record["checkpoints"])
        weights = trajectory_weights(checkpoint.record) if trajectory else ()
        trained_on = folder / TRAINED_ON
    engine, images = workspace.settings.engine, workspace.settings.corpus.images
    spec = PassSpec(
        model_folder=model,
        adapter=adapter,
        dtype=target.dtype,
        template=target.template,
        max_length=target.max_length,
        trust_remote_code=target.trust_remote_code,
        batch_tokens=engine.batch_tokens,
        head_memory=None if engine.head_memory_mib is None else engine.head_memory_mib * MIB,
        attention=engine.attention,
        compile_model=engine.compile,
        images=ImageLimits(images.max_pixels, images.max_bytes, images.fetch_remote),
        kind=kind,
        trajectory=trajectory,
        trajectory_weights=weights,
        base=base,
        trained_on=trained_on,
    )
    sigma = sigma_of(workspace, target) if wants_perturbation(target) else None
    if sigma is None:
        return Scorer(spec, engine.device, ray=ray_options(workspace))
    # theta_0 is the model before its training run, whatever the target is measured at.
    start = replace(spec, model_folder=base, adapter=None, trajectory=())
    perturbed = (perturbed_spec(workspace, target, start), perturbed_request(target, sigma))
    return Scorer(spec, engine.device, perturbed, ray_options(workspace))


def ray_options(workspace: Workspace) -> RayOptions | None:
    """The Ray cluster that measures; None where this machine's devices do."""
    engine = workspace.settings.engine
    return RayOptions(engine.address, engine.workers, engine.cpus_per_worker) if engine.kind == "ray" else None


def find_strength(workspace: Workspace, target: Target) -> dict[str, Any]:
    """Search for the strength of a target's random perturbation (`checkpoints.perturbation.search_sigma`)."""
    quieten_transformers()
    from resources.scoring.devices import devices_of  # noqa: PLC0415
    from resources.scoring.perturbed import make_perturbed_pass  # noqa: PLC0415

    plain = model_scorer(workspace, target.model_copy(update={"warmup": "none", "signals": ["likelihoods"]})).spec
    # One device is enough for some hundred samples.
    device = devices_of(workspace.settings.engine.device)[0]
    scoring = make_perturbed_pass(perturbed_spec(workspace, target, plain, path=False), device)
    return search_sigma(workspace, target, scoring)


def tokens_run(result: SampleSignals) -> int:
    """Tokens that were run through models for a sample, in all passes."""
    return result.tokens + result.unconditional_tokens + result.backward_tokens + result.elsewhere_tokens


def measure_shards(
    workspace: Workspace, target: Target, shards: Sequence[str], signals: Sequence[SignalName]
) -> Iterator[dict[SignalName, ShardMeasurement]]:
    """Measure what is not stored yet of these signals of every sample of the shards.

    Rows are committed in parts every `engine.part_seconds`, also when the work is interrupted; a shard's
    records come last, so a shard without one is asked for again and goes on where it stopped. Shards for which the
    allowance (`curation_assets.limits`) does not last are left out.
    """
    stores = {signal: SignalStore.of(workspace, target, signal) for signal in signals}
    with make_scorer(workspace, target) as scorer:
        for shard in shards:
            samples = read_shard_samples(workspace, shard, segmented=not SEGMENTED_SIGNALS.isdisjoint(stores))
            try:
                records = measure_samples(workspace, target, shard, samples, stores, scorer)
            except LimitReachedError as error:
                logger.info("%s: %s", target.name, error)
                continue
            for signal, record in records.items():
                workspace.warehouse.write_json(shard_record_path(stores[signal].folder, shard), asdict(record))
            yield records


def measure_samples(
    workspace: Workspace,
    target: Target,
    name: str,
    samples: ShardSamples,
    stores: Mapping[SignalName, SignalStore],
    scorer: Scorer | JudgeScorer,
) -> dict[SignalName, ShardMeasurement]:
    """Measure what is not stored yet of the samples of a shard, or of a validation set, of that name.

    Raises:
        LimitReachedError: the allowance does not last for all of them; what was measured is kept.
    """
    visit = Visit()
    missing = {signal: store.missing(samples.rows["sample_id"]) for signal, store in stores.items()}
    _measure_missing(workspace, target, name, samples, stores, missing, scorer, visit)
    for store in stores.values():
        store.compact(samples.rows["sample_id"])
    return {
        signal: _record(workspace, target, name, signal, samples, store, len(missing[signal]), scorer, visit)
        for signal, store in stores.items()
    }


def read_shard_samples(workspace: Workspace, shard: str, segmented: bool) -> ShardSamples:
    """The distinct samples of a shard and, if asked for, their segments.

    All empty for a shard whose file was gone before it was ever read.
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
    return ShardSamples(rows, steps, input_fingerprint(corpus_facts), steps_fingerprint)


def groups_by_missing(
    sample_ids: pl.Series, missing: Mapping[SignalName, set[str]]
) -> dict[frozenset[SignalName], list[str]]:
    """Sample_ids, in order, by the set of signals that they lack; those that lack none are in no group."""
    groups: dict[frozenset[SignalName], list[str]] = {}
    for sample_id in sample_ids:
        lacking = frozenset(signal for signal, ids in missing.items() if sample_id in ids)
        if lacking:
            groups.setdefault(lacking, []).append(sample_id)
    return groups


def _measure_missing(
    workspace: Workspace,
    target: Target,
    shard: str,
    samples: ShardSamples,
    stores: Mapping[SignalName, SignalStore],
    missing: Mapping[SignalName, set[str]],
    scorer: Scorer | JudgeScorer,
    visit: Visit,
) -> None:
    """Measure and commit what is missing, group by group."""
    groups = groups_by_missing(samples.rows["sample_id"], missing)
    if not groups:
        return
    allowance = current_allowance(workspace.settings.limits, workspace.warehouse)
    if allowance.reached():
        raise allowance.leave(target.name, shard, 0, 0)
    total, meter = sum(map(len, groups.values())), Meter(allowance, scorer.device_count)
    with track(f"{target.name}: measuring {shard}", total) as advance, ExitStack() as streams:
        for lacking, sample_ids in groups.items():
            wanted = samples.rows.filter(pl.col("sample_id").is_in(sample_ids))
            steps = samples.steps if lacking & SEGMENTED_SIGNALS else None
            parts = _Parts({signal: stores[signal] for signal in stores if signal in lacking})
            try:
                inputs = samples_of(workspace, wanted, steps)
                stream = streams.enter_context(closing(scorer.measure(inputs, request_for(target, lacking), advance)))
                for results in stream:
                    tokens = sum(tokens_run(result) for result in results)
                    visit.samples += len(results)
                    visit.tokens += tokens
                    meter.batch(tokens)
                    if parts.add(results, workspace.settings.engine.part_seconds):
                        allowance.settle()
                    if allowance.reached() and visit.samples < total:
                        raise allowance.leave(target.name, shard, visit.samples, visit.tokens)
            finally:
                # Also when interrupted: what has been measured is kept.
                parts.commit()
                allowance.settle()


class _Parts:
    """Results on their way into the stores of their signals."""

    def __init__(self, stores: Mapping[SignalName, SignalStore]) -> None:
        self._stores = stores
        self._pending: list[SampleSignals] = []
        self._committed = time.monotonic()

    def add(self, results: Sequence[SampleSignals], part_seconds: float) -> bool:
        """Take results, and commit what is there if the last part is old enough; whether it was."""
        self._pending.extend(results)
        if time.monotonic() - self._committed < part_seconds:
            return False
        self.commit()
        return True

    def commit(self) -> None:
        """One part a signal; killed in between, the samples lack only the signals that have none."""
        if self._pending:
            for signal, store in self._stores.items():
                store.append(SIGNALS[signal].frame(self._pending))
        # Not before all are written: interrupted here, they are written once more, under the same names.
        self._pending = []
        self._committed = time.monotonic()


def _record(
    workspace: Workspace,
    target: Target,
    shard: str,
    signal: SignalName,
    samples: ShardSamples,
    store: SignalStore,
    measured: int,
    scorer: Scorer | JudgeScorer,
    visit: Visit,
) -> ShardMeasurement:
    ids = samples.rows["sample_id"]
    stored = store.rows(ids)
    table = SIGNALS[signal].table.empty() if stored is None else stored
    tokens = table["tokens"].cast(pl.Int64).sum() if "tokens" in table.columns else 0
    parts = store.parts_of(ids)
    return ShardMeasurement(
        shard=shard,
        signal=signal,
        signal_fingerprint=store.fingerprint,
        input_fingerprint=samples.input_fingerprint(signal),
        image_limits=image_limits_key(workspace, target),
        rows=len(samples.rows),
        measured=measured,
        skipped=len(samples.rows) - measured,
        without_value=SIGNALS[signal].reasons(table),
        samples_visited=visit.samples,
        tokens_run=visit.tokens,
        tokens=int(tokens),
        seconds=round(time.monotonic() - visit.started, 3),
        finished=datetime.now(UTC).isoformat(),
        device=scorer.device_name() if visit.tokens else "",
        parts=parts,
        bytes=store.size_of(parts),
        left_out=store.left_out(ids),
    )
