"""Bringing one shard into the warehouse, and which shards and samples are there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from curation_assets import tables
from curation_assets.corpus.pool import resolve_duplicates
from curation_assets.corpus.reading import Account, Piece, ShardReader, account
from curation_assets.fingerprints import corpus_fingerprint
from curation_assets.workspace import Workspace
from resources.digests import digest
from resources.landing import UNREADABLE, LandingError, file_name

READ_ATTEMPTS = 3
LARGEST_LOSS = 0.2
LISTING = "corpus/listing.json"
PLACE = ("row", "candidate")


@dataclass(frozen=True)
class IngestedShard:
    """What reading one shard gave.

    Attributes:
        fingerprint: of its `raw_corpus`.
        content_digest: of its file.
        account: where its rows went.
        reasons: rejections by reason.
        format: see `ShardRows`.
        file_problem: see `ShardRows`.
    """

    fingerprint: str
    content_digest: str
    account: Account
    reasons: dict[str, int]
    format: str
    file_problem: str | None


def ingest_shard(workspace: Workspace, shard: str) -> IngestedShard:
    """Write the shard's `raw_corpus` and `rejected_rows`, piece by piece: a file need not fit into memory.

    A file that changes while it is read is read again; the digest kept is that of the bytes that were read.
    A file that is gone stops no range: what is stored of it stays, and the problem says so.
    """
    path = workspace.landing.path(shard)
    if not path.is_file():
        return _gone(workspace, shard)
    for attempt in range(READ_ATTEMPTS):
        last = attempt == READ_ATTEMPTS - 1
        try:
            ingested = _ingest(workspace, path, shard, workspace.landing.digest(path), must_be_same=not last)
        except _ChangedError:
            continue
        break
    workspace.cache.save()
    return ingested


class _ChangedError(Exception):
    """The file is another one than when its reading began."""


def _ingest(workspace: Workspace, path: Path, shard: str, content: str, *, must_be_same: bool) -> IngestedShard:
    """One reading of a file.

    Raises:
        _ChangedError: nothing is written of a file that changed meanwhile, if it `must_be_same`.
    """
    reader = ShardReader(
        path,
        shard,
        file_name(shard),
        workspace.settings.corpus,
        workspace.image_root(shard),
        workspace.keep_image,
    )
    warehouse, raw_path = workspace.warehouse, f"{tables.raw_corpus_dir()}/{shard}.parquet"
    rejected: list[pl.DataFrame] = [tables.REJECTED_ROWS.empty()]
    places: list[pl.DataFrame] = [tables.RAW_CORPUS.empty().select(PLACE)]
    images: list[str] = []
    with warehouse.writing_table(raw_path, tables.RAW_CORPUS.schema) as table:
        for piece in reader.pieces() if content != UNREADABLE else _unreadable(reader, shard):
            table.add(piece.accepted)
            rejected.append(piece.rejected)
            places.append(piece.accepted.select(PLACE))
            images += piece.accepted["image_digests"].explode().drop_nulls().to_list()
        if workspace.landing.digest(path) != content and must_be_same:
            raise _ChangedError
        refused = pl.concat(rejected)
        found = account(pl.concat(places), refused, reader.rows_in, reader.candidates_in)
        fingerprint = corpus_fingerprint(workspace, content)
        table.metadata = {
            "fingerprint": fingerprint,
            "content_digest": content,
            "path": file_name(shard),
            "format": reader.format,
            "rows_in": str(reader.rows_in),
            "rows": str(found.candidates_accepted),
            "rejected": str(len(refused)),
            "file_problem": reader.file_problem or "",
            # Of the image files that the rows show, as they were when they were read.
            "images": digest("images", images) if images else "",
        }
        # Before `raw_corpus`, whose fingerprint says that the rejected rows are there too.
        warehouse.write_table(f"{tables.rejected_rows_dir()}/{shard}.parquet", refused, table.metadata)
    return IngestedShard(fingerprint, content, found, _reasons(refused), reader.format, reader.file_problem)


def _reasons(rejected: pl.DataFrame) -> dict[str, int]:
    return dict(rejected.group_by("reason").len().sort("reason").iter_rows())


def _unreadable(reader: ShardReader, shard: str) -> Iterator[Piece]:
    """No piece, and why."""
    reader.file_problem = f"{file_name(shard)} cannot be opened: check that it is there and that this user may read it"
    yield from ()


def _gone(workspace: Workspace, shard: str) -> IngestedShard:
    """What is stored of a shard whose file is no longer there; an empty shard if nothing is."""
    problem = (
        f"{file_name(shard)} is no longer in the landing area: its tables are kept and its samples leave the "
        "subsets; put the file back to use it again"
    )
    stored = workspace.warehouse.table_metadata(f"{tables.raw_corpus_dir()}/{shard}.parquet")
    if not stored:
        nothing = account(tables.RAW_CORPUS.empty(), tables.REJECTED_ROWS.empty(), 0, 0)
        return IngestedShard("", "", nothing, {}, "unknown", problem)
    accepted = workspace.warehouse.read_columns(f"{tables.raw_corpus_dir()}/{shard}.parquet", *PLACE)
    rejected = workspace.warehouse.read_columns(f"{tables.rejected_rows_dir()}/{shard}.parquet", *PLACE, "reason")
    candidates = len(accepted) + len(rejected.filter(pl.col("candidate") >= 0))
    found = account(accepted, rejected, int(stored["rows_in"]), candidates)
    return IngestedShard(
        stored["fingerprint"], stored["content_digest"], found, _reasons(rejected), stored["format"], problem
    )


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
            f"{len(lost)} of {len(recorded['shards'])} files are gone from {workspace.landing.root} at once "
            f"({', '.join(file_name(shard) for shard in lost[:3])}): put them back, or confirm that they are meant "
            "to be gone with `curate run --accept-removals`"
        )


def present_shards(workspace: Workspace) -> list[str]:
    """Shards that have been read and whose file still lies in the landing area.

    Raises:
        LandingError: the folder is missing, or has lost too much at once (see `accept_listing`).
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
