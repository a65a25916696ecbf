"""Determine the samples that a run would measure: in `raw_corpus`, in unread files, and in validation sets.

Small unread files are parsed completely, in memory. Of large files only the first rows are parsed; each of them then
stands for several rows, in proportion to the file's size. Nothing is stored.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import polars as pl
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from curation_assets import tables
from curation_assets.corpus.held_out import read_validation
from curation_assets.corpus.ingest import present_shards
from curation_assets.corpus.parquet_rows import PARQUET_ERRORS, copy_first_rows
from curation_assets.corpus.purging import rows_without_purged
from curation_assets.corpus.reading import ShardRows, read_shard
from curation_assets.corpus.samples import samples_of
from curation_assets.signals.held_out import validation_of
from curation_assets.steps.segmentation import segment_frame
from curation_assets.workspace.fingerprints import corpus_fingerprint, steps_fingerprint
from curation_assets.workspace.held_out_files import ValidationSetError
from curation_assets.workspace.purge_list import PurgedList, copy_purged
from curation_assets.workspace.workspace import Workspace
from curation_resources.progress import track
from curation_resources.scoring.samples import Sample
from curation_resources.storage.landing import LandingFile, printable

LOOK_BYTES = 16 * 2**20
"""Bytes of unread files to look at in total."""

LEAST_HEAD = 2**18
"""Bytes to look at in each unread file, however many there are."""

BLOCK = 2**16

UNPACKED_RATIO = 16
"""Text compresses to about a tenth. Of files that expand further, only this multiple of the packed size is read."""

KNOWN = {
    "sample_id": pl.String,
    "shard": pl.String,
    "text_bytes": pl.Int64,
    "images": pl.Int64,
    "weight": pl.Float64,
}


@dataclass(frozen=True)
class Head:
    """The first rows of a file that has not been read, and how many rows each of them stands for."""

    rows: pl.DataFrame
    weight: float


@dataclass(frozen=True)
class Pool:
    """The distinct samples of everything that is present.

    Attributes:
        workspace: the configuration.
        scratch: the same with a temporary warehouse, which holds the images embedded in rows of unread files.
        known: one row per sample seen: sample_id, shard, bytes of prompt and response, number of images, and the number
            of samples it stands for (1, or more if its file was not parsed completely).
        heads: by shard, the first rows of unread files.
        held_out: the validation sets that scores need, by their shard name.
        shards: number of present shards.
        problems: files that cannot be read, or not completely, with the reason.
    """

    workspace: Workspace
    scratch: Workspace
    known: pl.DataFrame
    heads: Mapping[str, Head]
    held_out: Mapping[str, Head]
    shards: int
    problems: Sequence[str]

    @property
    def size(self) -> int:
        """Number of samples; an estimate if `estimated`."""
        return round(float(self.known["weight"].sum()))

    @property
    def estimated(self) -> bool:
        """True if some file is so large that its rows were extrapolated from its first rows."""
        return any(head.weight != 1.0 for head in self.heads.values())

    def samples(self, shard: str, sample_ids: Collection[str], segmented: bool) -> list[Sample]:
        """Return samples of a shard or validation set as a pass takes them, in order, with segments if requested."""
        head = self.heads.get(shard) or self.held_out.get(shard)
        stored = None if head is not None else self.workspace.warehouse.scan(tables.raw_corpus_dir(), [shard])
        rows = tables.RAW_CORPUS.empty().lazy() if stored is None else stored
        rows = rows if head is None else head.rows.lazy()
        wanted = rows.filter(pl.col("sample_id").is_in(list(sample_ids))).collect()
        wanted = wanted.unique("sample_id", keep="first", maintain_order=True)
        steps = self._steps(shard, wanted) if segmented else None
        return samples_of(self.workspace if head is None else self.scratch, wanted, steps)

    def _steps(self, shard: str, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the segments of these rows: the stored ones if they are current, else new ones."""
        if shard not in self.heads and shard not in self.held_out:
            warehouse = self.workspace.warehouse
            path = f"{tables.segmented_steps_dir()}/{shard}.parquet"
            corpus = warehouse.table_metadata(f"{tables.raw_corpus_dir()}/{shard}.parquet")
            wanted = steps_fingerprint(self.workspace, corpus["fingerprint"])
            if warehouse.table_metadata(path).get("fingerprint") == wanted:
                return warehouse.read_table(path).join(rows.select("sample_id"), on="sample_id", how="semi")
        return segment_frame(rows, self.workspace.settings.corpus.segmentation)


def look_at_pool(workspace: Workspace, scratch_folder: Path) -> Pool:
    """Find the samples that are present, reading only ids and lengths of stored rows.

    Args:
        workspace: the configuration.
        scratch_folder: an empty folder for images embedded in rows of unread files; the caller removes it.

    Raises:
        LandingError: the landing folder is missing, or has lost too many files at once.
    """
    settings = workspace.settings.model_copy(update={"warehouse": str(scratch_folder)})
    scratch = replace(workspace, settings=settings)
    copy_purged(workspace.warehouse, scratch.warehouse)
    files = workspace.landing.files()
    read = _current(workspace, workspace.landing.digests(files))
    unread = [file for file in files if file.shard not in set(read)]
    heads, problems = _look_at_files(scratch, unread)
    held_out, unusable = _validation_sets(scratch)
    workspace.cache.save()
    stored = workspace.warehouse.scan(tables.raw_corpus_dir(), read)
    parts = [known_samples(head.rows.lazy(), head.weight) for head in heads.values()]
    parts += [] if stored is None else [known_samples(stored, 1.0)]
    known = pl.concat([pl.DataFrame(schema=KNOWN), *parts]).sort("weight", "shard", maintain_order=True)
    known = known.unique("sample_id", keep="first", maintain_order=True)
    return Pool(workspace, scratch, known, heads, held_out, len(files), [*problems, *unusable])


def _validation_sets(scratch: Workspace) -> tuple[dict[str, Head], list[str]]:
    """Read the validation sets that scores need; also return the problems of those that cannot be used."""
    heads: dict[str, Head] = {}
    problems: list[str] = []
    wanted = {name for target in scratch.settings.targets for name in validation_of(scratch, target)}
    for name in sorted(wanted):
        try:
            rows = read_validation(scratch, scratch.settings.validation_set(name))
        except ValidationSetError as error:
            problems.append(str(error))
            continue
        heads[scratch.validation_shard(name)] = Head(rows.accepted, 1.0)
    return heads, problems


def known_samples(rows: pl.LazyFrame, weight: float) -> pl.DataFrame:
    """Return the rows of `Pool.known` for rows of `raw_corpus`, each of which stands for `weight` rows."""
    size = pl.col("messages").str.len_bytes() + pl.col("response").str.len_bytes()
    return rows.select(
        "sample_id",
        "shard",
        text_bytes=size.cast(pl.Int64),
        images=pl.col("images").list.len().cast(pl.Int64),
        weight=pl.lit(weight),
    ).collect()


def _current(workspace: Workspace, digests: Mapping[str, str]) -> list[str]:
    """Return the present shards whose stored rows match the current content of their files."""
    stored = workspace.warehouse.folder_metadata(tables.raw_corpus_dir())
    purged = PurgedList.read(workspace.warehouse)
    wanted = {shard: corpus_fingerprint(workspace, content, purged.ids_of(shard)) for shard, content in digests.items()}
    return [
        shard
        for shard in present_shards(workspace)
        if shard in wanted and stored.get(shard, {}).get("fingerprint") == wanted[shard]
    ]


def _look_at_files(scratch: Workspace, files: Sequence[LandingFile]) -> tuple[dict[str, Head], list[str]]:
    """Read the first rows of files, by shard; also return the problems of files as a whole."""
    heads: dict[str, Head] = {}
    problems: list[str] = []
    if not files:
        return heads, problems
    size = max(LEAST_HEAD, LOOK_BYTES // len(files))
    with track("looking at new files", len(files)) as advance:
        for file in files:
            try:
                rows, weight = _look_at_file(scratch, file, size)
                problem = rows.file_problem
                heads[file.shard] = Head(rows.accepted, weight)
            except OSError as error:
                # A run stores an empty shard for it and reports the same problem.
                problem = f"cannot be opened: {error.strerror or error}"
            if problem is not None:
                problems.append(f"{printable(file.name)}: {problem}")
            advance(1)
    return heads, problems


def _look_at_file(scratch: Workspace, file: LandingFile, size: int) -> tuple[ShardRows, float]:
    """Return the first rows of a file, and how many rows each of them stands for."""
    name = file.name
    corpus = scratch.settings.corpus
    head: bytes | None
    with scratch.landing.open(file.shard) as stream:
        if file.size <= size:
            head, weight = stream.read(), 1.0
        elif name.endswith(".parquet"):
            head, weight = _parquet_head(stream, size / file.size)
        else:
            head, weight = _text_head(stream, name, file.size, size, corpus.max_row_bytes)
            name = name if head is None else name.removesuffix(".gz")
    data: bytes | Path = scratch.landing.path(file.shard) if head is None else head

    def keep(image: str, content: bytes) -> None:
        scratch.warehouse.write_once(f"{tables.images_dir()}/{image}", content)

    rows = read_shard(data, file.shard, name, corpus, scratch.image_root(file.shard), keep)
    return rows_without_purged(rows, PurgedList.read(scratch.warehouse).ids()), weight


def _text_head(stream: IO[bytes], name: str, file_size: int, size: int, longest_row: int) -> tuple[bytes | None, float]:
    """Return the first whole lines of a text file, unpacked, and how many times as much the file holds.

    Return None, meaning the whole file, if a `.gz` file is not valid gzip.
    """
    taken = bytearray()
    try:
        for block in _unpacked(stream) if name.endswith(".gz") else iter(lambda: stream.read(BLOCK), b""):
            taken += block
            enough = stream.tell() >= size or len(taken) >= UNPACKED_RATIO * size
            if enough and (b"\n" in taken or len(taken) > longest_row):
                break
    except zlib.error:
        return None, 1.0
    if stream.tell() >= file_size:
        return bytes(taken), 1.0
    whole = taken.rfind(b"\n") + 1 or len(taken)
    return bytes(taken[:whole]), file_size / stream.tell() * len(taken) / whole


def _unpacked(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the unpacked blocks of a gzip file with one or more members."""
    member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    while packed := stream.read(BLOCK):
        parts = [member.decompress(packed)]
        while member.eof and (rest := member.unused_data.lstrip(b"\0")):
            member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
            parts.append(member.decompress(rest))
        yield b"".join(parts)


def _parquet_head(stream: IO[bytes], share: float) -> tuple[bytes | None, float]:
    """Return the first rows of a Parquet file, and how many times as many it has; None, as above, if unreadable."""
    try:
        with pq.ParquetFile(stream) as parquet:
            wanted = max(1, round(parquet.metadata.num_rows * share))
        buffer = io.BytesIO()
        taken, count = copy_first_rows(stream, wanted, buffer)
        return buffer.getvalue(), count / taken
    except (*PARQUET_ERRORS, ZeroDivisionError):
        return None, 1.0
