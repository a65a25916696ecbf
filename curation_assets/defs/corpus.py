"""Assets of the corpus stage: the observed landing files, and the tables read from them."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from curation_assets import tables
from curation_assets.corpus.ingest import accept_listing, ingest_shard, ingest_unreadable, missing_shards
from curation_assets.corpus.many_shards import map_shards
from curation_assets.defs.asset_metadata import OWNERS, column_schema, markdown_table
from curation_assets.defs.partition_metadata import add_partition_metadata
from curation_assets.defs.partitions import SHARDS
from curation_assets.workspace.versions import CORPUS_VERSION
from curation_assets.workspace.workspace import Workspace
from curation_resources.progress import track
from curation_resources.storage.landing import file_name, printable

RAW_CORPUS_KEY = dg.AssetKey("raw_corpus")
REJECTED_ROWS_KEY = dg.AssetKey("rejected_rows")
LANDING_KEY = dg.AssetKey("landing_files")


@dg.observable_source_asset(
    key=LANDING_KEY,
    group_name="corpus",
    partitions_def=SHARDS,
    description="The files of the landing area; a file's hash, or an object's ETag, is its version.",
    tags={"layer": "source", "dagster/kind/json": ""},
)
def landing_files(workspace: dg.ResourceParam[Workspace]) -> dg.DataVersionsByPartition:
    """Report the version of every landing file."""
    digests = workspace.landing.digests(workspace.landing.settled(wait=False))
    return dg.DataVersionsByPartition(digests)


class Removals(dg.Config):
    """Run config of the job `accept_removals`."""

    confirm: bool = False


@dg.op(description="Record that the files that are missing from the landing area are meant to be gone.")
def accept_missing_files(
    context: dg.OpExecutionContext, config: Removals, workspace: dg.ResourceParam[Workspace]
) -> None:
    """Accept the current listing of the landing area, however many files are missing.

    Raises:
        Failure: the run config does not confirm it; the message names the files.
    """
    missing = missing_shards(workspace)
    names = ", ".join(printable(file_name(shard)) for shard in missing)
    if missing and not config.confirm:
        raise dg.Failure(
            f"{len(missing)} files are missing: {names}. If they are meant to be gone, launch this job with confirm: "
            "true.",
            allow_retries=False,
        )
    accept_listing(workspace, confirmed=True)
    context.log.info("accepted that %d files are gone: %s", len(missing), names)


@dg.job(
    name="accept_removals",
    description="Confirm that files missing from the landing area are meant to be gone, as `curate run "
    "--accept-removals` does. Set confirm: true in the launchpad.",
)
def accept_removals() -> None:
    """Confirm removals from the UI."""
    accept_missing_files()


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            key,
            deps=[LANDING_KEY],
            group_name="corpus",
            description=table.meaning,
            metadata=column_schema(table),
            owners=OWNERS,
            kinds={"polars", "parquet"},
            code_version=str(CORPUS_VERSION),
        )
        for key, table in ((RAW_CORPUS_KEY, tables.RAW_CORPUS), (REJECTED_ROWS_KEY, tables.REJECTED_ROWS))
    ],
    partitions_def=SHARDS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    check_specs=[
        dg.AssetCheckSpec("rows_accounted_for", asset=RAW_CORPUS_KEY, blocking=True),
        dg.AssetCheckSpec("files_readable", asset=RAW_CORPUS_KEY),
    ],
)
def corpus(
    context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
) -> Iterator[dg.MaterializeResult[Any]]:
    """Read landing files into samples and rejected rows; every row ends up in one of them."""
    unaccounted: list[str] = []
    unreadable: list[tuple[str, str]] = []
    shards = context.partition_keys
    accepted: dict[str, dict[str, Any]] = {}
    rejected: dict[str, dict[str, Any]] = {}
    with track("reading shards", len(shards)) as advance:
        for shard, ingested in zip(shards, map_shards(workspace, shards, ingest_shard, ingest_unreadable), strict=True):
            found = ingested.account
            if not found.balanced:
                unaccounted.append(shard)
            if ingested.file_problem:
                unreadable.append((shard, ingested.file_problem))
            shared = {"fingerprint": ingested.fingerprint, "content_digest": ingested.content_digest}
            accepted[shard] = shared | {
                "dagster/partition_row_count": found.candidates_accepted,
                "rows_in": found.rows_in,
                "format": ingested.format,
                "values_not_finite": ingested.not_finite,
            }
            if ingested.mapped.filled:
                counts = ingested.mapped.filled.items()
                accepted[shard]["mapped_columns"] = markdown_table(("path", "rows with a value"), counts)
            if (warning := ingested.mapped.warning()) is not None:
                context.log.warning("%s: %s", shard, warning)
            rejected[shard] = shared | {"dagster/partition_row_count": sum(ingested.reasons.values())}
            if ingested.reasons:
                rejected[shard]["reasons"] = markdown_table(("reason", "rows"), ingested.reasons.items())
            advance(1)
    add_partition_metadata(context, RAW_CORPUS_KEY, accepted)
    add_partition_metadata(context, REJECTED_ROWS_KEY, rejected)
    yield dg.MaterializeResult(
        asset_key=RAW_CORPUS_KEY,
        check_results=[
            dg.AssetCheckResult(
                check_name="rows_accounted_for",
                passed=not unaccounted,
                metadata={"shards": len(shards), "not_accounted_for": unaccounted},
            ),
            dg.AssetCheckResult(
                check_name="files_readable",
                passed=not unreadable,
                severity=dg.AssetCheckSeverity.WARN,
                metadata={
                    "problems": markdown_table(("shard", "problem and fix"), unreadable),
                    # Files that are no shards, so that nobody misses them.
                    "ignored_files": workspace.landing.ignored(),
                },
            ),
        ],
    )
    yield dg.MaterializeResult(asset_key=REJECTED_ROWS_KEY)
