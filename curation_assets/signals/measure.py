"""Measuring shards: only what is not measured yet, in parts that survive a kill, with a record a shard."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import polars as pl

from curation_assets import tables
from curation_assets.checkpoints.warmup import warmup_checkpoint
from curation_assets.fingerprints import BASE_ROLE, WARMUP_ROLE, step_gradients_fingerprint
from curation_assets.progress import track
from curation_assets.samples import samples_of
from curation_assets.settings import Target
from curation_assets.workspace import Workspace
from resources.errors import UserError
from resources.scorer import Scorer
from resources.scoring.samples import StepGradients
from resources.warehouse import Measurements

WINDOW_SAMPLES = 4096
"""Samples that are encoded and sorted by length together."""


class MeasuringError(UserError):
    """A target cannot be measured yet."""


@dataclass(frozen=True)
class ShardMeasurement:
    """What measuring one shard did.

    Attributes:
        shard: the shard.
        signal_fingerprint: what it was measured under.
        steps_fingerprint: of the shard's segmented steps: the record holds for these and no others.
        rows: distinct samples of the shard.
        measured: samples measured now.
        skipped: samples that had been measured before.
        without_score: samples of the shard that have no Gram matrix, by reason.
        tokens_measured: tokens run through the model now.
        tokens: tokens behind all the shard's samples, whenever they were measured.
        seconds: time spent on the shard.
        device: what it ran on; empty if nothing had to run.
        parts: the parts that hold the shard's samples: without one of them the record holds no longer.
    """

    shard: str
    signal_fingerprint: str
    steps_fingerprint: str
    rows: int
    measured: int
    skipped: int
    without_score: dict[str, int]
    tokens_measured: int
    tokens: int
    seconds: float
    device: str
    parts: list[str]


def role_of(target: Target) -> str:
    """The part that the measured checkpoint plays."""
    return BASE_ROLE if target.warmup == "none" else WARMUP_ROLE


def step_gradients_dir(workspace: Workspace, target: Target) -> str | None:
    """Folder of the target's current `step_gradients`; None while its warm-up has not been trained."""
    fingerprint = step_gradients_fingerprint(workspace, target)
    if fingerprint is None:
        return None
    return tables.signal_dir(target.name, role_of(target), "step_gradients", fingerprint)


def shard_record_path(folder: str, shard: str) -> str:
    """Where a shard's `ShardMeasurement` is kept; it is written after all of the shard's rows."""
    return f"{folder}/shards/{shard}.json"


def make_scorer(workspace: Workspace, target: Target) -> Scorer:
    """The scorer of a target: its base model with its warm-up, if it has one.

    Raises:
        MeasuringError: the warm-up has not been trained.
    """
    adapter = None
    if target.warmup != "none":
        checkpoint = warmup_checkpoint(workspace, target)
        if checkpoint is None:
            raise MeasuringError(
                f"the warm-up of target {target.name} has not been trained: materialize "
                f"{target.name}/warmup_checkpoint, or use `curate run`"
            )
        adapter = workspace.warehouse.path(checkpoint.folder)
    engine = workspace.settings.engine
    return Scorer(
        model_folder=workspace.model_folder(target),
        adapter=adapter,
        device=engine.device,
        dtype=target.dtype,
        template=target.template,
        max_length=target.max_length,
        batch_tokens=engine.batch_tokens,
        trust_remote_code=target.trust_remote_code,
    )


def measure_shards(workspace: Workspace, target: Target, shards: Sequence[str]) -> Iterator[ShardMeasurement]:
    """Measure `step_gradients` of every sample of the shards that is not measured yet.

    Rows are committed in parts every `engine.part_seconds`, also when the work is interrupted; a shard's
    record comes last, so a shard without one is asked for again and goes on where it stopped.
    """
    fingerprint = step_gradients_fingerprint(workspace, target)
    folder = step_gradients_dir(workspace, target)
    if fingerprint is None or folder is None:
        raise MeasuringError(f"the warm-up of target {target.name} has not been trained")
    store = Measurements(workspace.warehouse, folder)
    scorer = make_scorer(workspace, target)
    for shard in shards:
        started = time.monotonic()
        rows, steps, steps_fp = read_shard_samples(workspace, shard)
        missing = store.missing(rows["sample_id"])
        run = _measure_missing(workspace, target, shard, store, scorer, rows, steps, missing)
        table = store.rows(rows["sample_id"])
        record = ShardMeasurement(
            shard=shard,
            signal_fingerprint=fingerprint,
            steps_fingerprint=steps_fp,
            rows=len(rows),
            measured=len(missing),
            skipped=len(rows) - len(missing),
            without_score={} if table is None else count_reasons(table),
            tokens_measured=run,
            tokens=0 if table is None else int(table["tokens"].cast(pl.Int64).sum()),
            seconds=round(time.monotonic() - started, 3),
            device=scorer.device_name() if run else "",
            parts=store.parts_of(rows["sample_id"]),
        )
        workspace.warehouse.write_json(shard_record_path(folder, shard), asdict(record))
        yield record


def read_shard_samples(workspace: Workspace, shard: str) -> tuple[pl.DataFrame, pl.DataFrame, str]:
    """The distinct samples of a shard, their segments, and the fingerprint of the latter.

    All empty for a shard whose file was gone before it was ever read.
    """
    if not workspace.warehouse.table_metadata(f"{tables.raw_corpus_dir()}/{shard}.parquet"):
        return tables.RAW_CORPUS.empty(), tables.SEGMENTED_STEPS.empty(), ""
    corpus = workspace.warehouse.read_table(f"{tables.raw_corpus_dir()}/{shard}.parquet")
    path = f"{tables.segmented_steps_dir()}/{shard}.parquet"
    steps = workspace.warehouse.read_table(path)
    fingerprint = workspace.warehouse.table_metadata(path)["fingerprint"]
    return corpus.unique("sample_id", keep="first", maintain_order=True), steps, fingerprint


def count_reasons(step_gradients: pl.DataFrame) -> dict[str, int]:
    """How many samples have no Gram matrix, by their flags."""
    without = step_gradients.filter(pl.col("gram").is_null()).select(pl.col("flags").list.join("+"))
    return dict(sorted(without.group_by("flags").len().iter_rows()))


def _measure_missing(
    workspace: Workspace,
    target: Target,
    shard: str,
    store: Measurements,
    scorer: Scorer,
    rows: pl.DataFrame,
    steps: pl.DataFrame,
    missing: set[str],
) -> int:
    """Measure and commit the missing samples; gives the tokens that were run."""
    if not missing:
        return 0
    wanted = rows.filter(pl.col("sample_id").is_in(list(missing)))
    samples = samples_of(wanted, steps)
    tokens = 0
    pending: list[StepGradients] = []
    committed = time.monotonic()
    with track(f"{target.name}: step gradients of {shard}", len(samples)) as advance:
        try:
            for start in range(0, len(samples), WINDOW_SAMPLES):
                for results in scorer.step_gradients(samples[start : start + WINDOW_SAMPLES], advance):
                    pending.extend(results)
                    tokens += sum(result.tokens for result in results)
                    if time.monotonic() - committed >= workspace.settings.engine.part_seconds:
                        store.append(_frame(pending))
                        pending, committed = [], time.monotonic()
        finally:
            # Also when interrupted: what has been measured is kept.
            if pending:
                store.append(_frame(pending))
    return tokens


def _frame(results: Sequence[StepGradients]) -> pl.DataFrame:
    rows = [asdict(result) | {"n_steps": len(result.step_indices)} for result in results]
    return tables.STEP_GRADIENTS.conform(pl.DataFrame(rows, schema=tables.STEP_GRADIENTS.schema, strict=False))
