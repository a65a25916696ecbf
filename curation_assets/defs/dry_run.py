"""A dry run: the whole pipeline on a few rows in a temporary place, before a complete run."""

from __future__ import annotations

import gzip
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import dagster as dg
import polars as pl
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from curation_assets import tables
from curation_assets.config.running_settings import Limits
from curation_assets.config.settings import Settings, Target
from curation_assets.corpus.first_rows import copy_first_rows
from curation_assets.corpus.ingest import pool_rows, present_shards
from curation_assets.defs.main_job import MainJob, RunSummary
from curation_assets.workspace.purge_list import copy_purged
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.landing import LandingError, file_name, printable


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
    """Run the main job on the first rows of the files, `rows` in total, and keep nothing.

    The rows are copied; images that they name are read in their original place.

    Raises:
        LandingError: there is no file, or every row was rejected.
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
        if not len(pool_rows(small)):
            raise LandingError(_all_rejected(small))
        yield DryRun(summary, share, time.monotonic() - started, small)


def _all_rejected(workspace: Workspace) -> str:
    """Return the message for a dry run without a single sample, with an example of each reason."""
    found = workspace.warehouse.scan(tables.rejected_rows_dir(), present_shards(workspace))
    rejected = tables.REJECTED_ROWS.empty() if found is None else found.collect()
    if rejected.is_empty():
        return f"there is no row in the first lines of the files in {workspace.landing.place}. Add rows with traces."
    counts = rejected.group_by("reason").agg(pl.len(), pl.col("detail", "shard", "row").first()).sort("len", "reason")
    reasons = [
        f"{count} x {reason}: {detail} (such as {printable(file_name(shard))}, row {row})"
        for reason, count, detail, shard, row in counts.reverse().iter_rows()
    ]
    return "every row was rejected, so there is nothing to measure:\n" + "\n".join(reasons)


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
    """Copy `rows` first rows of the files, or all if there are fewer; return the fraction of the landing area's bytes.

    Files share the rows evenly; what a short file lacks is taken from longer ones. If there are more files than rows,
    some files are skipped.
    """
    files = workspace.landing.files()
    if not files:
        raise LandingError(f"there is no shard in {workspace.landing.place}. A dry run needs some rows: add a file.")
    longest = workspace.settings.corpus.max_row_bytes
    spread = sorted({place * len(files) // min(rows, len(files)) for place in range(min(rows, len(files)))})
    counts = {files[place].name: 0 for place in spread}
    wanted = dict.fromkeys(counts, 0)
    shares = dict.fromkeys(counts, 0.0)
    growing, left = [files[place] for place in spread], rows
    while growing and left > 0:
        each, more = divmod(left, len(growing))
        for place, file in enumerate(growing):
            extra = each + (place < more)
            if extra:
                target = out / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                wanted[file.name] += extra
                shares[file.name] = copy_first_rows(workspace.landing, file, target, longest, rows=wanted[file.name])
                counts[file.name] = _rows_in(target)
        before, left = left, rows - sum(counts.values())
        # Rows that cannot be counted, of a damaged file, end the search too.
        growing = [file for file in growing if 0 < shares[file.name] < 1.0] if left < before else []
        growing.sort(key=lambda file: counts[file.name])
    total = sum(file.size for file in files)
    return sum(file.size * shares.get(file.name, 0.0) for file in files) / total if total else 0.0


def _rows_in(file: Path) -> int:
    """Return the number of rows of a copy, without blank lines; 0 if it cannot be read."""
    try:
        if file.name.lower().endswith(".parquet"):
            return int(pq.read_metadata(file).num_rows)
        with gzip.open(file) if file.name.lower().endswith(".gz") else file.open("rb") as stream:
            return sum(not line.isspace() for line in stream)
    except (OSError, EOFError, zlib.error, pa.ArrowException):
        return 0
