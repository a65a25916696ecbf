"""Ingest a shard into the warehouse, and list present shards and samples."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import polars as pl

from curation_assets import tables
from curation_assets.corpus.duplicates import resolve_duplicates
from curation_assets.corpus.formats import Mapped
from curation_assets.corpus.purging import drop_images, kept_images, without_purged
from curation_assets.corpus.reading import UNKNOWN, Account, Piece, ShardReader, ShardRows, account
from curation_assets.workspace.fingerprints import corpus_fingerprint
from curation_assets.workspace.purge_list import PurgedList
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError, in_a_line
from curation_resources.storage.digests import digest
from curation_resources.storage.landing import UNREADABLE, LandingError, file_name, printable

logger = logging.getLogger("curation")
READ_ATTEMPTS = 3
LARGEST_LOSS = 0.2
LEAST_LOST = 5
"""Fewer files may go, if some stay: in a small landing area a fifth is soon reached."""

LISTING = "corpus/listing.json"
PLACE = ("row", "candidate")


@dataclass(frozen=True)
class IngestedShard:
    """The result of reading one shard.

    Attributes:
        fingerprint: fingerprint of its `raw_corpus`.
        content_digest: digest of its file.
        account: accepted and rejected rows.
        reasons: number of rejections by reason.
        format: see `ShardRows`.
        file_problem: see `ShardRows`.
        not_finite: see `ShardRows`.
        mapped: see `ShardRows`.
    """

    fingerprint: str
    content_digest: str
    account: Account
    reasons: dict[str, int]
    format: str
    file_problem: str | None
    not_finite: int = 0
    mapped: Mapped = field(default_factory=Mapped)


def ingest_shard(workspace: Workspace, shard: str) -> IngestedShard:
    """Write the shard's `raw_corpus` and `rejected_rows` piece by piece, so that a file need not fit into memory.

    If a file changes while it is read, it is read again; the stored digest is that of the bytes that were read. A
    missing file does not fail the run: its stored tables stay, and the problem is reported.
    """
    landing = workspace.landing
    if not landing.exists(shard):
        return _gone(workspace, shard)
    for attempt in range(READ_ATTEMPTS):
        last = attempt == READ_ATTEMPTS - 1
        content = landing.digest(shard)
        try:
            ingested = _ingest(workspace, shard, content, must_be_same=not last)
        except _ChangedError:
            continue
        except _ContentError as error:
            # One odd file must not stop the others, nor the run.
            cause = error.cause
            logger.exception("reading %s failed", printable(file_name(shard)), exc_info=cause)
            problem = (
                f"{printable(file_name(shard))} cannot be read: {type(cause).__name__}: {in_a_line(cause)[:300]}. This "
                "is a fault of curation-assets: please report it. Write the file in another way, or remove it."
            )
            ingested = _without_rows(workspace, shard, content, "reader_failed", problem)
        break
    workspace.cache.save()
    return ingested


def ingest_unreadable(workspace: Workspace, shard: str) -> IngestedShard:
    """Write empty tables for a shard whose file ended the process that read it, with that as the file's problem.

    The file is read again when its content or the settings of reading change.
    """
    problem = (
        f"reading {printable(file_name(shard))} ended the process that read it: the file is damaged, or needs more "
        "memory than there is. Write the file again, or split it into smaller ones."
    )
    return _without_rows(workspace, shard, workspace.landing.digest(shard), "ends_process", problem)


def _without_rows(workspace: Workspace, shard: str, content: str, reason: str, problem: str) -> IngestedShard:
    """Write empty tables for a shard, with the problem of its file."""
    refused = pl.DataFrame([(shard, -1, -1, reason, problem, "")], tables.REJECTED_ROWS.schema, orient="row")
    rows = ShardRows(tables.RAW_CORPUS.empty(), tables.REJECTED_ROWS.conform(refused), 0, 0, UNKNOWN, problem)
    fingerprint = corpus_fingerprint(workspace, content, PurgedList.read(workspace.warehouse).ids_of(shard))
    write_shard_rows(workspace, shard, rows, fingerprint, content)
    found = account(rows.accepted, rows.rejected, 0, 0)
    return IngestedShard(fingerprint, content, found, {reason: 1}, UNKNOWN, problem)


class _ChangedError(Exception):
    """The file changed after reading began."""


class _ContentError(Exception):
    """Reading raised an exception, the cause, because of the file's content."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _pieces(reader: ShardReader) -> Iterator[Piece]:
    """Yield a reader's pieces.

    Raises:
        _ContentError: the file's content is such that the reader fails. Trouble of the storage, of memory or of the
            disk is raised as it is.
    """
    pieces = reader.pieces()
    while True:
        try:
            piece = next(pieces, None)
        except (OSError, MemoryError, UserError):
            raise
        except Exception as error:
            raise _ContentError(error) from error
        if piece is None:
            return
        yield piece


def _ingest(workspace: Workspace, shard: str, content: str, *, must_be_same: bool) -> IngestedShard:
    """Read a file once.

    Raises:
        _ChangedError: the file changed in the meantime and `must_be_same` is set; nothing is written.
    """
    reader = ShardReader(
        _file(workspace, shard) if content != UNREADABLE else None,
        shard,
        file_name(shard),
        workspace.settings.corpus,
        workspace.image_root(shard),
        workspace.keep_image,
        workspace.fetch_image,
    )
    warehouse = workspace.warehouse
    purged = PurgedList.read(warehouse)
    refused: list[pl.DataFrame] = [tables.REJECTED_ROWS.empty().select(PLACE)]
    places: list[pl.DataFrame] = [tables.RAW_CORPUS.empty().select(PLACE)]
    reasons: Counter[str] = Counter()
    images: list[str] = []
    taken_out: set[str] = set()
    candidates_out = 0
    # `raw_corpus` is written last: its fingerprint shows that the rejected rows are complete.
    with (
        warehouse.writing_table(_raw_path(shard), tables.RAW_CORPUS.schema) as table,
        warehouse.writing_table(_rejected_path(shard), tables.REJECTED_ROWS.schema) as rejected,
    ):
        for piece in _pieces(reader):
            kept = without_purged(piece.accepted, piece.rejected, purged.ids())
            table.add(kept.accepted)
            rejected.add(kept.rejected)
            refused.append(kept.rejected.select(PLACE))
            reasons.update(_reasons(kept.rejected))
            places.append(kept.accepted.select(PLACE))
            images += kept.accepted["image_digests"].explode().drop_nulls().to_list()
            candidates_out += kept.candidates_out
            taken_out |= kept_images(piece.accepted) - kept_images(kept.accepted)
        if workspace.landing.digest(shard) != content and must_be_same:
            raise _ChangedError
        candidates = reader.candidates_in - candidates_out
        found = account(pl.concat(places), pl.concat(refused), reader.rows_in, candidates)
        fingerprint = corpus_fingerprint(workspace, content, purged.ids_of(shard))
        by_reason, kept_rows = dict(sorted(reasons.items())), found.candidates_accepted
        facts = _facts(shard, fingerprint, content, reader, kept_rows, by_reason, images)
        table.metadata = rejected.metadata = facts
    # Image bytes are stored while a row is read, before we know whether it is accepted.
    drop_images(warehouse, taken_out)
    problem = reader.file_problem
    return IngestedShard(
        fingerprint, content, found, by_reason, reader.format, problem, reader.not_finite, reader.mapped
    )


def _raw_path(shard: str) -> str:
    return f"{tables.raw_corpus_dir()}/{shard}.parquet"


def _rejected_path(shard: str) -> str:
    return f"{tables.rejected_rows_dir()}/{shard}.parquet"


def _facts(
    shard: str,
    fingerprint: str,
    content: str,
    rows: ShardReader | ShardRows,
    accepted: int,
    reasons: Mapping[str, int],
    images: list[str],
) -> dict[str, str]:
    """Return the metadata of a shard's tables.

    `accepted` is the number of candidates, `reasons` are those of rejections; `images` are the digests of its rows'
    images at the time of reading.
    """
    return {
        "fingerprint": fingerprint,
        "content_digest": content,
        "path": file_name(shard),
        "format": rows.format,
        "rows_in": str(rows.rows_in),
        "rows": str(accepted),
        "rejected": str(sum(reasons.values())),
        "file_problem": rows.file_problem or "",
        "images": digest("images", images) if images else "",
        **({"not_finite": str(rows.not_finite)} if rows.not_finite else {}),
        **({"reasons": json.dumps(reasons)} if reasons else {}),
        **({"mapped": json.dumps(asdict(rows.mapped))} if rows.mapped.filled else {}),
    }


def write_shard_rows(
    workspace: Workspace, shard: str, rows: ShardRows, fingerprint: str, content_digest: str
) -> dict[str, str]:
    """Write both tables of a shard; return the metadata in their footers."""
    images = rows.accepted["image_digests"].explode().drop_nulls().to_list()
    reasons = _reasons(rows.rejected)
    metadata = _facts(shard, fingerprint, content_digest, rows, len(rows.accepted), reasons, images)
    workspace.warehouse.write_table(_rejected_path(shard), rows.rejected, metadata)
    # Written last: its fingerprint shows that the rejected rows are complete.
    workspace.warehouse.write_table(_raw_path(shard), rows.accepted, metadata)
    return metadata


def stored_shard_rows(workspace: Workspace, shard: str, facts: Mapping[str, str]) -> ShardRows:
    """Return the stored rows of a shard, given the metadata of its `raw_corpus`."""
    accepted = workspace.warehouse.read_table(_raw_path(shard))
    rejected = workspace.warehouse.read_table(_rejected_path(shard))
    candidates = len(accepted) + len(rejected.filter(pl.col("candidate") >= 0))
    problem, not_finite = facts["file_problem"] or None, int(facts.get("not_finite", 0))
    rows_in, mapped = int(facts["rows_in"]), Mapped(**json.loads(facts.get("mapped", "{}")))
    return ShardRows(accepted, rejected, rows_in, candidates, facts["format"], problem, not_finite, mapped)


def _reasons(rejected: pl.DataFrame) -> dict[str, int]:
    return dict(rejected.group_by("reason").len().sort("reason").iter_rows())


def _file(workspace: Workspace, shard: str) -> Path | None:
    """Return the shard's file, or a local copy of it; None if it is not available."""
    try:
        return workspace.landing.path(shard)
    except OSError:
        # It existed a moment ago; the check after reading reports the change.
        return None


def _gone(workspace: Workspace, shard: str) -> IngestedShard:
    """Return the stored state of a shard whose file is missing; an empty shard if nothing is stored."""
    problem = (
        f"{printable(file_name(shard))} is no longer in the landing area. Its tables are kept, and its samples leave "
        "the subsets. Put the file back to use it again."
    )
    stored = workspace.warehouse.table_metadata(_raw_path(shard))
    if not stored:
        nothing = account(tables.RAW_CORPUS.empty(), tables.REJECTED_ROWS.empty(), 0, 0)
        return IngestedShard("", "", nothing, {}, "unknown", problem)
    accepted = workspace.warehouse.read_columns(_raw_path(shard), *PLACE)
    rejected = workspace.warehouse.read_columns(_rejected_path(shard), *PLACE, "reason")
    candidates = len(accepted) + len(rejected.filter(pl.col("candidate") >= 0))
    found = account(accepted, rejected, int(stored["rows_in"]), candidates)
    return IngestedShard(
        stored["fingerprint"], stored["content_digest"], found, _reasons(rejected), stored["format"], problem
    )


def accept_listing(workspace: Workspace, confirmed: bool = False) -> None:
    """Record the current landing area as the baseline that later listings are compared with.

    Args:
        workspace: the configuration.
        confirmed: whether a person confirmed that missing files are meant to be gone.

    Raises:
        LandingError: as `refuse_losses`, unless confirmed.
    """
    landed, recorded = _listings(workspace)
    if not confirmed:
        _refuse(workspace, landed, recorded or set())
    if landed != recorded:
        workspace.warehouse.write_json(LISTING, {"shards": sorted(landed)})


def refuse_losses(workspace: Workspace) -> None:
    """Refuse to go on if too many files are gone at once: an unmounted disk must not empty the subsets.

    Raises:
        LandingError: all files of the last accepted listing are gone, or at least five and more than a fifth of them.
    """
    landed, recorded = _listings(workspace)
    _refuse(workspace, landed, recorded or set())


def missing_shards(workspace: Workspace) -> list[str]:
    """Return the shards of the last accepted listing that are no longer in the landing area."""
    landed, recorded = _listings(workspace)
    return sorted((recorded or set()) - landed)


def _listings(workspace: Workspace) -> tuple[set[str], set[str] | None]:
    """Return the shards in the landing area, and those of the last accepted listing, if there is one."""
    recorded = workspace.warehouse.read_json(LISTING)
    return {file.shard for file in workspace.landing.files()}, None if recorded is None else set(recorded["shards"])


def _refuse(workspace: Workspace, landed: set[str], recorded: set[str]) -> None:
    lost = sorted(recorded - landed)
    many = len(lost) >= LEAST_LOST and len(lost) > LARGEST_LOSS * len(recorded)
    if many or (lost and not landed):
        some = ", ".join(printable(file_name(shard)) for shard in lost[:3])
        raise LandingError(
            f"{len(lost)} of {len(recorded)} files are gone from {workspace.landing.place} at once ({some}). Put them "
            "back, or confirm that they are meant to be gone: `curate run --accept-removals`, or launch the job "
            "accept_removals in the UI."
        )


def present_shards(workspace: Workspace) -> list[str]:
    """Return the shards that have been read and whose file is still in the landing area.

    What writes tables of the whole pool calls `refuse_losses` first.

    Raises:
        LandingError: the landing area is missing.
    """
    landed = {file.shard for file in workspace.landing.files()}
    if workspace.only_shards is not None:
        landed &= workspace.only_shards
    return [shard for shard in workspace.warehouse.names(tables.raw_corpus_dir()) if shard in landed]


def pool_rows(workspace: Workspace) -> pl.DataFrame:
    """Return the pool: sample_id, place and number of `images` of every present sample, each sample once."""
    scan = workspace.warehouse.scan(tables.raw_corpus_dir(), present_shards(workspace))
    place = ["sample_id", "shard", "row", "candidate"]
    frame = tables.RAW_CORPUS.empty().lazy() if scan is None else scan
    return resolve_duplicates(frame.select(*place, pl.col("images").list.len()).collect())[0]


def corpus_rows(workspace: Workspace, sample_ids: list[str]) -> pl.DataFrame:
    """Return the present rows of `raw_corpus` of these samples, one each, ordered by sample_id."""
    scan = workspace.warehouse.scan(tables.raw_corpus_dir(), present_shards(workspace))
    frame = tables.RAW_CORPUS.empty().lazy() if scan is None else scan
    wanted = pl.LazyFrame({"sample_id": sample_ids}, schema={"sample_id": pl.String})
    return resolve_duplicates(frame.join(wanted, on="sample_id", how="semi").collect())[0].sort("sample_id")
