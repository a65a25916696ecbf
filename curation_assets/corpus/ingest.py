"""Bringing one shard into the warehouse, and which shards and samples are there."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from curation_assets import tables
from curation_assets.corpus.pool import resolve_duplicates
from curation_assets.corpus.reading import ShardRows, read_shard
from curation_assets.fingerprints import corpus_fingerprint
from curation_assets.workspace import Workspace
from resources.digests import digest
from resources.landing import UNREADABLE, LandingError, file_name

READ_ATTEMPTS = 3
LARGEST_LOSS = 0.2
LISTING = "corpus/listing.json"


@dataclass(frozen=True)
class IngestedShard:
    """What reading one shard gave, with the fingerprint of its `raw_corpus`."""

    rows: ShardRows
    fingerprint: str
    content_digest: str


def ingest_shard(workspace: Workspace, shard: str) -> IngestedShard:
    """Write the shard's `raw_corpus` and `rejected_rows`.

    A file that changes while it is read is read again; the digest kept is that of the bytes that were read.
    A file that is gone stops no range: what is stored of it stays, and the problem says so.
    """
    landing = workspace.landing
    if not landing.exists(shard):
        return _gone(workspace, shard)
    for _attempt in range(READ_ATTEMPTS):
        before = landing.digest(shard)
        rows = _read(workspace, shard) if before != UNREADABLE else _unreadable(shard)
        if landing.digest(shard) == before:
            break
    workspace.cache.save()
    fingerprint = corpus_fingerprint(workspace, before)
    metadata = {
        "fingerprint": fingerprint,
        "content_digest": before,
        "path": file_name(shard),
        "format": rows.format,
        "rows_in": str(rows.rows_in),
        "rows": str(len(rows.accepted)),
        "rejected": str(len(rows.rejected)),
        "file_problem": rows.file_problem or "",
        "images": _images_digest(rows.accepted),
    }
    workspace.warehouse.write_table(f"{tables.rejected_rows_dir()}/{shard}.parquet", rows.rejected, metadata)
    # Written last: its fingerprint says that the rejected rows are there too.
    workspace.warehouse.write_table(f"{tables.raw_corpus_dir()}/{shard}.parquet", rows.accepted, metadata)
    return IngestedShard(rows, fingerprint, before)


def _images_digest(accepted: pl.DataFrame) -> str:
    """Of the image files that the rows show, as they were when they were read; empty if there are none."""
    digests = accepted["image_digests"].explode().drop_nulls().to_list()
    return digest("images", digests) if digests else ""


def _read(workspace: Workspace, shard: str) -> ShardRows:
    try:
        return read_shard(
            workspace.landing.path(shard),
            shard,
            file_name(shard),
            workspace.settings.corpus,
            workspace.image_root(shard),
            workspace.keep_image,
        )
    except OSError:
        # It was there a moment ago; the look at it after reading says so, too.
        return _unreadable(shard)


def _unreadable(shard: str) -> ShardRows:
    problem = f"{file_name(shard)} cannot be opened: check that it is there and that this user may read it"
    return _empty(problem)


def _empty(problem: str) -> ShardRows:
    return ShardRows(tables.RAW_CORPUS.empty(), tables.REJECTED_ROWS.empty(), 0, 0, "unknown", problem)


def _gone(workspace: Workspace, shard: str) -> IngestedShard:
    """What is stored of a shard whose file is no longer there; an empty shard if nothing is."""
    problem = (
        f"{file_name(shard)} is no longer in the landing area: its tables are kept and its samples leave the "
        "subsets; put the file back to use it again"
    )
    stored = workspace.warehouse.table_metadata(f"{tables.raw_corpus_dir()}/{shard}.parquet")
    if not stored:
        return IngestedShard(_empty(problem), "", "")
    accepted = workspace.warehouse.read_table(f"{tables.raw_corpus_dir()}/{shard}.parquet")
    rejected = workspace.warehouse.read_table(f"{tables.rejected_rows_dir()}/{shard}.parquet")
    candidates = len(accepted) + len(rejected.filter(pl.col("candidate") >= 0))
    rows = ShardRows(accepted, rejected, int(stored["rows_in"]), candidates, stored["format"], problem)
    return IngestedShard(rows, stored["fingerprint"], stored["content_digest"])


def accept_listing(workspace: Workspace, confirmed: bool = False) -> None:
    """Take the landing area as it is now as the one that later listings are held against.

    Args:
        workspace: the configuration.
        confirmed: whether a person said that what is missing is meant to be gone.

    Raises:
        LandingError: more than a fifth of the shards of the last accepted listing are gone: an unmounted
            disk must not empty the subsets.
    """
    landed = {file.shard for file in workspace.landing.files()}
    if not confirmed:
        _check_losses(workspace, landed)
    recorded = workspace.warehouse.read_json(LISTING)
    if recorded is None or set(recorded["shards"]) != landed:
        workspace.warehouse.write_json(LISTING, {"shards": sorted(landed)})


def _check_losses(workspace: Workspace, landed: set[str]) -> None:
    recorded = workspace.warehouse.read_json(LISTING) or {"shards": []}
    lost = sorted(set(recorded["shards"]) - landed)
    if len(lost) > LARGEST_LOSS * len(recorded["shards"]):
        raise LandingError(
            f"{len(lost)} of {len(recorded['shards'])} files are gone from {workspace.landing.place} at once "
            f"({', '.join(file_name(shard) for shard in lost[:3])}): put them back, or confirm that they are meant "
            "to be gone with `curate run --accept-removals`"
        )


def present_shards(workspace: Workspace) -> list[str]:
    """Shards that have been read and whose file still lies in the landing area.

    Raises:
        LandingError: the landing area is missing, or has lost too much at once (see `accept_listing`).
    """
    landed = {file.shard for file in workspace.landing.files()}
    _check_losses(workspace, landed)
    return [shard for shard in workspace.warehouse.names(tables.raw_corpus_dir()) if shard in landed]


def pool_rows(workspace: Workspace) -> pl.DataFrame:
    """The pool: of every sample that is present its sample_id, place and number of `images`, each sample once."""
    scan = workspace.warehouse.scan(tables.raw_corpus_dir(), present_shards(workspace))
    place = ["sample_id", "shard", "row", "candidate"]
    frame = tables.RAW_CORPUS.empty().lazy() if scan is None else scan
    return resolve_duplicates(frame.select(*place, pl.col("images").list.len()).collect())[0]


def corpus_rows(workspace: Workspace, sample_ids: list[str]) -> pl.DataFrame:
    """The present rows of `raw_corpus` of these samples, one each, in order of sample_id."""
    scan = workspace.warehouse.scan(tables.raw_corpus_dir(), present_shards(workspace))
    frame = tables.RAW_CORPUS.empty().lazy() if scan is None else scan
    wanted = pl.LazyFrame({"sample_id": sample_ids}, schema={"sample_id": pl.String})
    return resolve_duplicates(frame.join(wanted, on="sample_id", how="semi").collect())[0].sort("sample_id")
