"""Orchestration in the ingest benchmark: our main job without measuring, and a bare Dagster graph beside it."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

from curation_assets.definitions import build_definitions
from curation_assets.defs.instance import open_instance
from curation_assets.defs.main_job import QUIET, MainJob
from curation_assets.workspace.workspace import HOME_VARIABLE, Workspace
from tests.models import write_tiny_model
from tests.pipeline.workspaces import make_workspace, rows

ROWS = 5


def measured_workspace(folder: Path, shards: int) -> Workspace:
    """A workspace of small shards that a run has been through."""
    model = write_tiny_model(folder / "model")
    files = {f"part-{n:03d}.jsonl": rows(ROWS, start=ROWS * n) for n in range(shards)}
    workspace = make_workspace(folder / "workspace", model, files)
    with dg.DagsterInstance.ephemeral() as instance:
        MainJob(workspace, instance).run()
    return workspace


@contextmanager
def _home(folder: Path) -> Iterator[None]:
    """A fresh Dagster home, as a first `curate run` makes it."""
    before = os.environ.get(HOME_VARIABLE)
    os.environ[HOME_VARIABLE] = str(folder / ".dagster")
    try:
        yield
    finally:
        if before is None:
            del os.environ[HOME_VARIABLE]
        else:
            os.environ[HOME_VARIABLE] = before


def our_seconds(measured: Workspace, folder: Path) -> float:
    """A first run over all shards in which nothing has to be measured: all else is made, recorded and checked."""
    shutil.copytree(measured.folder, folder, ignore=shutil.ignore_patterns("warehouse", ".dagster"))
    source, target = measured.folder / "warehouse", folder / "warehouse"
    # What was measured, without the records of shards: these are part of what a run makes.
    shutil.copytree(source / "signals", target / "signals", ignore=shutil.ignore_patterns("shards"))
    with _home(folder):
        workspace = Workspace.load(folder / "curation.yaml")
        with open_instance(workspace) as instance:
            started = time.perf_counter()
            summary = MainJob(workspace, instance).run()
            seconds = time.perf_counter() - started
    assert summary.tokens_measured == 0, summary
    assert summary.new_shards == summary.read
    return seconds


def bare_seconds(measured: Workspace, folder: Path, shards: int) -> float:
    """A graph of as many assets and checks over as many partitions, each of which writes one small file."""
    folder.mkdir()
    partitions = dg.DynamicPartitionsDefinition(name="bare")
    ours = [one for one in build_definitions(measured).assets or [] if isinstance(one, dg.AssetsDefinition)]
    made: list[dg.AssetsDefinition] = []
    for partitioned in (True, False):
        counts = [
            len([spec for spec in one.check_specs if spec.asset_key == key])
            for one in ours
            for key in one.keys
            if one.is_materializable and (one.partitions_def is not None) == partitioned and "releases" not in key.path
        ]
        for number, checks in enumerate(counts):
            name = f"{'parts' if partitioned else 'whole'}_{number}"
            made.append(_bare_asset(name, partitions if partitioned else None, checks, made, folder))
    definitions = dg.Definitions(assets=made)
    keys = [f"part-{n:03d}" for n in range(shards)]
    job = definitions.resolve_implicit_global_asset_job_def()
    selections = [[one.key for one in made if (one.partitions_def is not None) == kind] for kind in (True, False)]
    with _home(folder), open_instance(measured) as instance:
        started = time.perf_counter()
        instance.add_dynamic_partitions("bare", keys)
        tags = {"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]}
        for selection, own in zip(selections, (tags, {}), strict=True):
            if selection:
                job.execute_in_process(
                    run_config=QUIET, instance=instance, asset_selection=selection, tags=own, raise_on_error=True
                )
        return time.perf_counter() - started


def _bare_asset(
    name: str,
    partitions: dg.PartitionsDefinition[str] | None,
    checks: int,
    before: Sequence[dg.AssetsDefinition],
    folder: Path,
) -> dg.AssetsDefinition:
    """An asset that writes one small file a partition, says how many rows it has, and passes its checks."""

    @dg.asset(
        name=name,
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run() if partitions else None,
        deps=[before[-1].key] if before else [],
        check_specs=[dg.AssetCheckSpec(f"check_{n}", asset=name) for n in range(checks)],
    )
    def bare(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        for key in context.partition_keys if partitions else ["whole"]:
            (folder / f"{name}-{key}.json").write_text('{"rows": 5}')
            if partitions:
                context.add_asset_metadata({"dagster/partition_row_count": ROWS}, partition_key=key)
        yield dg.MaterializeResult(
            check_results=[dg.AssetCheckResult(check_name=f"check_{n}", passed=True) for n in range(checks)]
        )

    return bare
