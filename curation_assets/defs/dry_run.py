"""A dry run: the whole pipeline on a few rows in a temporary place, before a complete run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import dagster as dg

from curation_assets.config.running_settings import Limits
from curation_assets.config.settings import Settings, Target
from curation_assets.corpus.first_rows import copy_first_rows
from curation_assets.defs.main_job import MainJob, RunSummary
from curation_assets.workspace.purge_list import copy_purged
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.landing import LandingError


@dataclass(frozen=True)
class DryRun:
    """The result of a dry run.

    Attributes:
        summary: summary of the main job over the few rows.
        share: fraction of the landing area's bytes that was used.
        seconds: time taken, including loading the model.
        workspace: the workspace that holds its tables; deleted when the dry run ends.
    """

    summary: RunSummary
    share: float
    seconds: float
    workspace: Workspace


@contextmanager
def dry_run(workspace: Workspace, rows: int, announce: Callable[[str], None] | None = None) -> Iterator[DryRun]:
    """Run the main job on the first rows of every file, about `rows` in total, and keep nothing.

    The rows are copied; images that they name are read in their original place.
    """
    with tempfile.TemporaryDirectory(prefix="curation-dry-run-") as folder:
        place = Path(folder)
        share = _copy_first_rows(workspace, place / "landing", rows)
        settings = _settings_for(workspace.settings, workspace.folder)
        small = replace(
            workspace, config_file=place / "curation.yaml", settings=settings, images_from=workspace.landing
        )
        small.warehouse.prepare()
        copy_purged(workspace.warehouse, small.warehouse)
        started = time.monotonic()
        with dg.DagsterInstance.ephemeral() as instance:
            summary = MainJob(small, instance, announce).run()
        yield DryRun(summary, share, time.monotonic() - started, small)


def _settings_for(settings: Settings, folder: Path) -> Settings:
    """Adapt the settings to a small pool in another place: a warm-up that does not wait, absolute paths."""
    targets = [_target_for(target, folder) for target in settings.targets]
    filters = settings.corpus.filters
    if filters.contamination is not None:
        files = [_absolute(folder, file) for file in filters.contamination.files]
        contamination = filters.contamination.model_copy(update={"files": files})
        filters = filters.model_copy(update={"contamination": contamination})
    validation = [held.model_copy(update={"path": _absolute(folder, held.path)}) for held in settings.validation]
    corpus = settings.corpus.model_copy(update={"landing": "./landing", "filters": filters})
    update = {"corpus": corpus, "targets": targets, "validation": validation, "warehouse": "./warehouse"}
    # The row count is the limit. The place is local: workers of a cluster would not see it.
    update["limits"] = Limits()
    update["engine"] = settings.engine.model_copy(update={"kind": "local"})
    return settings.model_copy(update=update)


def _target_for(target: Target, folder: Path) -> Target:
    local = (folder / Path(target.model).expanduser()).resolve()
    warmup, perturbation = target.warmup, target.perturbation
    if warmup != "none":
        # The other place has no releases: the few rows replace one.
        warmup = warmup.model_copy(update={"min_pool": 1, "release": None})
    if perturbation.endpoint is not None:
        perturbation = perturbation.model_copy(update={"endpoint": _absolute(folder, perturbation.endpoint)})
    update = {"warmup": warmup, "perturbation": perturbation, "model": str(local) if local.is_dir() else target.model}
    return target.model_copy(update=update)


def _absolute(folder: Path, path: str) -> str:
    return str(folder / Path(path).expanduser())


def _copy_first_rows(workspace: Workspace, out: Path, rows: int) -> float:
    """Copy the first rows of every file; return the fraction of the landing area's bytes that they stand for."""
    files = workspace.landing.files()
    if not files:
        raise LandingError(f"there is no shard in {workspace.landing.place}. A dry run needs some rows: add a file.")
    each = max(1, -(-rows // len(files)))
    copied = 0.0
    for file in files:
        target = out / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        longest = workspace.settings.corpus.max_row_bytes
        copied += file.size * copy_first_rows(workspace.landing, file, target, longest, rows=each)
    total = sum(file.size for file in files)
    return copied / total if total else 0.0
