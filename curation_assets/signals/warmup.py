"""A target's trained checkpoint: trained once on a random fraction of the pool, then frozen.

By default it is GRACE's warm-up. With the recipe of S2L it is a reference run that also stores
intermediate checkpoints.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock, Timeout

from curation_assets import tables
from curation_assets.config.checkpoint_settings import FEW_STEPS, Warmup
from curation_assets.config.settings import Target
from curation_assets.corpus.held_out import read_validation
from curation_assets.corpus.ingest import corpus_rows, pool_rows, present_shards
from curation_assets.corpus.samples import samples_of
from curation_assets.methods.apportionment import ceil_share
from curation_assets.quality.checks import QualityError
from curation_assets.quality.filtered_pool import pool_due, without_filtered
from curation_assets.workspace.fingerprints import (
    WARMUP_ROLE,
    grown_key,
    recipe_key,
    trained_weights,
    wants_moments,
    warmup_key,
)
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from curation_resources.progress import track
from curation_resources.scoring.samples import Sample, without_nulls
from curation_resources.storage.digests import digest
from curation_resources.training.examples import scheduled_steps, steps_of
from curation_resources.training.files import INFLUENCE, RECORD, TRAINED_ON
from curation_resources.training.recipe import Recipe
from curation_resources.training.trainer import TrainingSpec, Trajectory, step_folder, train

logger = logging.getLogger("curation")

"""Number of optimizer steps below which a run logs a warning, and proposes a smaller batch."""


class CheckpointError(UserError):
    """A checkpoint is missing or cannot be made."""


@dataclass(frozen=True)
class WarmupCheckpoint:
    """A trained warm-up checkpoint: the adapter's folder in the warehouse, and its record."""

    folder: str
    record: dict[str, Any]

    def weights(self, workspace: Workspace, model: Path) -> tuple[Path, Path | None]:
        """Return the folders of the model and of its adapter: the target's `model`, or the fully trained weights."""
        folder = workspace.warehouse.local(self.folder)
        return (folder, None) if self.record["recipe"]["adapter"] == "full" else (model, folder)

    @property
    def key(self) -> str:
        """The key of its recipe and base model: the folder's name."""
        return self.folder.rsplit("/", 1)[-1]


def warmup_checkpoint(workspace: Workspace, target: Target) -> WarmupCheckpoint | None:
    """Return the warm-up that the target's configuration names, if it has been trained."""
    folder = tables.checkpoint_dir(target.name, WARMUP_ROLE, warmup_key(workspace, target))
    record = workspace.warehouse.read_json(f"{folder}/{RECORD}")
    return None if record is None else WarmupCheckpoint(folder, record)


def planned_checkpoints(workspace: Workspace, target: Target, drawn: int) -> int:
    """Return the number of intermediate checkpoints of a target's run: recorded, or planned for `drawn` samples."""
    if target.warmup == "none" or not target.warmup.save_every:
        return 0
    trained = warmup_checkpoint(workspace, target)
    if trained is not None:
        return len(trained.record["checkpoints"])
    recipe = target.warmup.recipe_for(drawn)
    return len(_trajectory(target).over(drawn, recipe).steps(steps_of(drawn, recipe)))


def trainable_rows(workspace: Workspace) -> pl.DataFrame:
    """Return the pool rows that a warm-up can be trained on: those without images, as the trainer reads text only."""
    return pool_of(workspace).filter(pl.col("images") == 0)


def pool_of(workspace: Workspace) -> pl.DataFrame:
    """Return the pool after filters; empty until the filters have been applied to all of it."""
    rows = pool_rows(workspace)
    if pool_due(workspace, present_shards(workspace)):
        return rows.clear()
    try:
        return without_filtered(workspace, rows)[0]
    except QualityError:
        # Some shards have not been checked yet: the pool is not available before they are.
        return rows.clear()


def grown_pool(workspace: Workspace, target: Target, size: int | None = None) -> int | None:
    """Return the pool's size if it has grown so much since the target's run that the run must be repeated, else None.

    Args:
        workspace: the configuration.
        target: the target whose run is checked.
        size: size of the pool without samples with images; default: the stored pool.
    """
    trained = warmup_checkpoint(workspace, target)
    if target.warmup == "none" or target.warmup.retrain_growth is None or trained is None:
        return None
    if target.warmup.release is not None:
        return None
    pool = len(trainable_rows(workspace)) if size is None else size
    return pool if pool >= trained.record["pool"] * (1.0 + target.warmup.retrain_growth) else None


def too_few(workspace: Workspace, target: Target, sizes: tuple[int, int] | None = None) -> str | None:
    """Return why the target's run cannot be trained yet, and the fix; None if its training data is complete.

    Args:
        workspace: the configuration.
        target: the target whose run is checked.
        sizes: number of text samples and of samples with images in the pool; default: those of the stored pool.
    """
    assert isinstance(target.warmup, Warmup)
    waiting = waits_for_others(workspace, target)
    if waiting is not None or target.warmup.release is not None:
        return waiting
    if sizes is None:
        images = pool_of(workspace)["images"]
        sizes = int((images == 0).sum()), int((images > 0).sum())
    size, with_images = sizes
    if size >= target.warmup.min_pool:
        return None
    of_text, beside = ("", "")
    if with_images:
        of_text, beside = " of text only", f" (plus {with_images} with images, which no warm-up is trained on)"
    return (
        f"target {target.name}: the pool holds {size} samples{of_text}{beside}; its warm-up needs "
        f"{target.warmup.min_pool}. Add traces{of_text}, lower targets.warmup.min_pool, or set warmup: none."
    )


def waits_for_others(workspace: Workspace, target: Target) -> str | None:
    """Return the release or other target's run that the target's own run waits for, and the fix; None if none."""
    assert isinstance(target.warmup, Warmup)
    release, start = target.warmup.release, target.warmup.start
    if start is not None and warmup_checkpoint(workspace, workspace.settings.target(start)) is None:
        return (
            f"target {target.name}: its warm-up starts from the weights of target {start}, which has not been trained "
            "yet. Run `curate run`, which trains both."
        )
    if release is not None and release_rows_of(workspace, release) is None:
        subset, number = release.split("@")
        return (
            f"target {target.name}: its run trains on release {number} of {subset}, which does not exist. "
            f"Run `curate release {subset}`."
        )
    return None


def release_rows_of(workspace: Workspace, release: str) -> int | None:
    """Return the number of rows of a release (NAME@N); None if there is no such release."""
    subset, number = release.split("@")
    manifest = workspace.warehouse.read_json(f"{tables.release_dir(subset)}/{number}/manifest.json")
    return None if manifest is None else int(manifest["rows"])


def draw_samples(sample_ids: pl.Series, fraction: float, seed: int) -> list[str]:
    """Draw a random fraction of samples, independent of row order: the lowest seeded hashes."""
    count = ceil_share(Fraction(str(fraction)), len(sample_ids))
    ranked = sorted(sample_ids.to_list(), key=lambda sample_id: digest("warmup", seed, sample_id))
    return sorted(ranked[:count])


def train_warmup(workspace: Workspace, target: Target) -> WarmupCheckpoint:
    """Train the target's warm-up on its fraction of the pool's text rows, or return the existing one.

    It is retrained if the pool has grown by `retrain_growth` since. The previous one stays, and is used for measuring
    until the new one is complete.

    Raises:
        CheckpointError: there are fewer such rows than the warm-up's `min_pool`.
    """
    if target.warmup == "none":
        raise CheckpointError(f"target {target.name} has warmup: none, so there is nothing to train")
    known, grown = warmup_checkpoint(workspace, target), grown_pool(workspace, target)
    if known is not None and grown is None:
        return known
    waiting = too_few(workspace, target)
    if waiting is not None:
        raise CheckpointError(waiting)
    training = training_samples(workspace, target)
    key = recipe_key(workspace, target) if grown is None else grown_key(recipe_key(workspace, target), grown)
    folder = tables.checkpoint_dir(target.name, WARMUP_ROLE, key)
    # Another warehouse, or a pool that has grown since a run was killed, trains different data under this key.
    drawn = digest([sample.sample_id for sample in training])
    work = workspace.work_folder(f"warmup-{key}-{digest(workspace.warehouse.storage.shown(folder), drawn)}")

    def fill(place: Path) -> None:
        _train(workspace, target, training, place, work)

    with alone(work):
        known = warmup_checkpoint(workspace, target)
        if known is None or known.folder != folder:
            workspace.warehouse.create_folder(folder, fill, last=RECORD)
            known = warmup_checkpoint(workspace, target)
        shutil.rmtree(work, ignore_errors=True)
    if known is None:
        raise CheckpointError(f"{folder} has no {RECORD}. Remove the folder and train again.")
    return known


@contextmanager
def alone(work: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder among this machine's processes, waiting for it if necessary."""
    work.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work.with_name(f"{work.name}.lock"))
    if not _taken(lock):
        logger.info("waiting for another process that trains in %s", work)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _taken(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def training_samples(workspace: Workspace, target: Target) -> list[Sample]:
    """Return the samples that the target's run is trained on: a draw of the pool, or the rows of a release."""
    assert isinstance(target.warmup, Warmup)
    if target.warmup.release is None:
        rows = trainable_rows(workspace)
        chosen = draw_samples(rows["sample_id"], target.warmup.fraction, target.warmup.seed)
        return samples_of(workspace, corpus_rows(workspace, chosen))
    subset, number = target.warmup.release.split("@")
    data = workspace.warehouse.local(f"{tables.release_dir(subset)}/{number}") / "data/train.parquet"
    rows = pl.read_parquet(data, columns=["sample_id", "messages", "images"])
    # Sorted by sample_id, like draws: the training order does not depend on ranks.
    return [
        # A run is trained on text and skips samples with images, so a placeholder is enough.
        Sample(
            sample_id, without_nulls(messages[:-1]), messages[-1]["content"], images=[b"image" for _ in images or ()]
        )
        for sample_id, messages, images in rows.sort("sample_id").iter_rows()
    ]


def _train(workspace: Workspace, target: Target, training: Sequence[Sample], place: Path, work: Path) -> None:
    warmup = target.warmup
    assert isinstance(warmup, Warmup)
    recipe = _recipe_for(target, len(training))
    spec = TrainingSpec(
        _started_from(workspace, target),
        target.template,
        target.max_length,
        device=workspace.settings.engine.one_device,
        dtype=target.dtype,
        trust_remote_code=target.trust_remote_code,
    )
    with track(f"{target.name}: training its checkpoint", steps_of(len(training), recipe)) as advance:
        record = train(
            spec,
            training,
            place,
            recipe,
            trajectory=_trajectory(target),
            validation=_validation_samples(workspace, warmup.influence),
            work=work,
            progress=advance,
        )
    influence = {} if record.influence is None else {INFLUENCE: record.influence}
    trained_on = pl.DataFrame({"sample_id": record.sample_ids, **influence})
    trained_on.write_parquet(place / TRAINED_ON)
    document = {
        "recipe_key": recipe_key(workspace, target),
        "pool": None if warmup.release is not None else len(trainable_rows(workspace)),
        "drawn": len(training),
        "samples": len(record.sample_ids),
        "steps": record.steps,
        "tokens": record.tokens,
        "seconds": round(record.seconds, 3),
        "losses": record.losses,
        "gradient_norms": record.gradient_norms,
        "learning_rates": record.learning_rates,
        "checkpoints": record.checkpoints,
        "weights": trained_weights(workspace, place, recipe.adapter),
        "weights_on_the_way": [
            trained_weights(workspace, step_folder(place, step), recipe.adapter) for step in record.checkpoints
        ],
        "distance": _distances(workspace, target, place, record.checkpoints),
        "recipe": recipe.facts(),
        "base": target.model,
        "influence": None if record.influence is None else digest("influence", trained_on.to_dict(as_series=False)),
        "release": warmup.release,
        "start": warmup.start,
    }
    (place / RECORD).write_text(json.dumps(document, indent=1, sort_keys=True))


def _recipe_for(target: Target, samples: int) -> Recipe:
    """Return the recipe of a target's run, and say so if its few optimizer steps change its batch size."""
    assert isinstance(target.warmup, Warmup)
    configured, recipe = target.warmup.recipe(), target.warmup.recipe_for(samples)
    steps = steps_of(samples, recipe)
    if recipe.batch_size != configured.batch_size:
        logger.warning(
            "target %s: its checkpoint would take %d optimizer steps on %d samples with batches of %d; it takes %d "
            "with batches of %d. Set warmup.batch_size to choose another size.",
            *(target.name, steps_of(samples, configured), samples, configured.batch_size, steps, recipe.batch_size),
        )
    elif steps < FEW_STEPS and recipe.max_steps is None:
        logger.warning(
            "target %s: its checkpoint takes only %d optimizer steps on %d samples. For more, lower warmup.batch_size, "
            "or raise warmup.fraction or warmup.epochs.",
            *(target.name, steps, samples),
        )
    return recipe


def _validation_samples(workspace: Workspace, names: Sequence[str]) -> dict[str, list[Sample]]:
    """Read the samples of the sets that a run's influence is computed on, from their files."""
    sets = {name: read_validation(workspace, workspace.settings.validation_set(name)).accepted for name in names}
    return {name: samples_of(workspace, rows.unique("sample_id", maintain_order=True)) for name, rows in sets.items()}


def _trajectory(target: Target) -> Trajectory:
    """Return the intermediate checkpoints that a target's run stores."""
    assert isinstance(target.warmup, Warmup)
    return Trajectory(every=target.warmup.save_every or 0, optimizer=wants_moments(target))


def trajectory_weights(record: Mapping[str, Any], as_logged: bool = False) -> tuple[float, ...]:
    """Return the weight of each intermediate checkpoint, normalised to sum to 1.

    It is the mean learning rate of the steps since the previous checkpoint: in LESS the mean rate of an epoch (arXiv
    2402.04333, Definition 3.1), in TAGCOS of ten steps.

    Args:
        record: record of the training run.
        as_logged: count for each step the rate that transformers' Trainer logs, as the released code does: the rate of
            the next step.
    """
    rates: list[float] = record["learning_rates"]
    if as_logged:
        recipe = Recipe(**record["recipe"])
        last = recipe.learning_rate * recipe.share_of_rate(len(rates), scheduled_steps(record["samples"], recipe))
        rates = [*rates[1:], last]
    means = [sum(rates[first:last]) / (last - first) for first, last in pairwise([0, *record["checkpoints"]])]
    total = sum(means)
    if not total:
        # A run of a single step logs a rate of 0.
        return (1.0 / len(means),) * len(means)
    return tuple(mean / total for mean in means)


def _distances(workspace: Workspace, target: Target, place: Path, steps: Sequence[int]) -> dict[str, Any]:
    """Return how far the run moved the model (L2 norm over parameters): in total, by layer, and at each checkpoint."""
    from curation_resources.scoring.distances import by_layer, distances, total  # noqa: PLC0415

    def of(folder: Path) -> dict[str, float]:
        return distances(folder, workspace.model_folder(target), trust_remote_code=target.trust_remote_code)

    norms = of(place)
    on_the_way = [total(of(step_folder(place, step))) for step in steps]
    return {"all": total(norms), "by_layer": by_layer(norms), "on_the_way": on_the_way}


def _started_from(workspace: Workspace, target: Target) -> Path:
    """Return the model that a target's run starts from."""
    assert isinstance(target.warmup, Warmup)
    if target.warmup.start is None:
        return workspace.model_folder(target)
    before = warmup_checkpoint(workspace, workspace.settings.target(target.warmup.start))
    if before is None:
        raise CheckpointError(str(waits_for_others(workspace, target)))
    return workspace.warehouse.local(before.folder)
