"""Read a landing file into rows of `raw_corpus` and `rejected_rows`, and prove that nothing is lost.

A row is a nonblank line, or a Parquet row. Each row has exactly one of two outcomes: one or more of its candidate
responses are accepted (the others are rejected under their own index), or the row as a whole is rejected, once, with
candidate -1. Problems of a file as a whole are rejected under row -1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import orjson
import polars as pl

from curation_assets.config.corpus_settings import Corpus
from curation_assets.corpus.containers import read_batches
from curation_assets.corpus.drafts import Draft, Refused
from curation_assets.corpus.fields import Row
from curation_assets.corpus.formats import Mapped, Parser, detect
from curation_assets.corpus.identity import identify
from curation_assets.corpus.images import ImageFolder, digest_of_bytes
from curation_assets.corpus.raw_rows import EXCERPT_CHARS, RawRow, RowBatch
from curation_assets.tables import RAW_CORPUS, REJECTED_ROWS
from curation_resources.storage.landing import printable

DETECTION_ROWS = 50
# Rows are buffered until the format is known, so a file of broken lines must not fill the memory.
DETECTION_LIMIT = 1000
PIECE_BYTES = 1 << 25
UNKNOWN = "unknown"


@dataclass(frozen=True)
class ShardRows:
    """The content of a landing file.

    Attributes:
        accepted: rows of `raw_corpus`.
        rejected: rows of `rejected_rows`.
        rows_in: number of rows in the file, without blank lines.
        candidates_in: number of responses in rows that have an accepted one.
        format: the format's name, or "unknown".
        file_problem: the problem of the file as a whole, and its fix.
        not_finite: number of values NaN and Infinity, which were read as null.
        mapped: how many rows have a value at each mapped path.
    """

    accepted: pl.DataFrame
    rejected: pl.DataFrame
    rows_in: int
    candidates_in: int
    format: str
    file_problem: str | None
    not_finite: int = 0
    mapped: Mapped = field(default_factory=Mapped)


@dataclass(frozen=True)
class Account:
    """Outcomes of a shard's rows and candidates; `balanced` means that each is accounted for exactly once."""

    rows_in: int
    rows_accepted: int
    rows_rejected: int
    candidates_in: int
    candidates_accepted: int
    candidates_rejected: int
    balanced: bool


def read_shard(
    data: Path | bytes,
    shard: str,
    name: str,
    corpus: Corpus,
    images_root: Path | None = None,
    keep_image: Callable[[str, bytes], None] | None = None,
) -> ShardRows:
    """Read a whole landing file; see `ShardReader`."""
    reader = ShardReader(data, shard, name, corpus, images_root, keep_image)
    pieces = list(reader.pieces())
    return ShardRows(
        accepted=pl.concat([RAW_CORPUS.empty(), *(piece.accepted for piece in pieces)], rechunk=True),
        rejected=pl.concat([REJECTED_ROWS.empty(), *(piece.rejected for piece in pieces)]),
        rows_in=reader.rows_in,
        candidates_in=reader.candidates_in,
        format=reader.format,
        file_problem=reader.file_problem,
        not_finite=reader.not_finite,
        mapped=reader.mapped,
    )


def account(accepted: pl.DataFrame, rejected: pl.DataFrame, rows_in: int, candidates_in: int) -> Account:
    """Recount from the tables alone, and compare with the counts made while reading.

    Args:
        accepted: row and candidate of `raw_corpus`.
        rejected: row and candidate of `rejected_rows`.
        rows_in: see `ShardRows`.
        candidates_in: see `ShardRows`.
    """
    rows = accepted["row"].unique()
    whole = rejected.filter((pl.col("row") >= 0) & (pl.col("candidate") == -1))["row"]
    single = rejected.filter(pl.col("candidate") >= 0).select("row", "candidate")
    places = pl.concat([accepted.select("row", "candidate"), single])
    return Account(
        rows_in=rows_in,
        rows_accepted=rows.len(),
        rows_rejected=whole.len(),
        candidates_in=candidates_in,
        candidates_accepted=accepted.height,
        candidates_rejected=single.height,
        balanced=(
            rows_in == rows.len() + whole.len()
            and candidates_in == places.height
            and whole.n_unique() == whole.len()
            and not rows.is_in(whole.implode()).any()
            and bool(single["row"].is_in(rows.implode()).all())
            and not places.is_duplicated().any()
        ),
    )


class Piece(NamedTuple):
    """Part of a file's rows, as rows of both tables; pieces are in file order."""

    accepted: pl.DataFrame
    rejected: pl.DataFrame


class ShardReader:
    """Reads one landing file piece by piece. Bad input never raises; it is in `rejected` and `file_problem`.

    Args:
        data: the file, or its bytes; None if it cannot be opened.
        shard: its partition key.
        name: its name, whose extension determines the format (.jsonl, .jsonl.gz, .parquet).
        corpus: format, mapped columns and the longest allowed row.
        images_root: the folder that image paths are relative to; default: the folder of `data` if it is a path.
        keep_image: stores the bytes of an image inside a row under their digest; None to discard them.
        fetch_image: makes an image file available; see `ImageFolder`.

    Attributes:
        rows_in: see `ShardRows`, as for the others; all are known after the last piece.
    """

    def __init__(
        self,
        data: Path | bytes | None,
        shard: str,
        name: str,
        corpus: Corpus,
        images_root: Path | None = None,
        keep_image: Callable[[str, bytes], None] | None = None,
        fetch_image: Callable[[Path], str | None] = lambda _path: None,
    ) -> None:
        self._items = iter(()) if data is None else read_batches(data, name, corpus.max_row_bytes)
        self._corpus = corpus
        self._shard = shard
        if images_root is None and isinstance(data, Path):
            images_root = data.parent
        self._images = ImageFolder(images_root, keep_image, fetch_image)
        self.rows_in = 0
        self.candidates_in = 0
        self.not_finite = 0
        self.mapped = Mapped()
        self.format = UNKNOWN
        self.file_problem: str | None = None
        if data is None:
            self.file_problem = (
                f"{printable(name)} cannot be opened. Check that it exists and that this user may read it."
            )

    def pieces(self) -> Iterator[Piece]:
        """Yield the rows, a few tens of MiB at a time."""
        if self.file_problem is not None:
            return
        head = list(self._until_parsed())
        form: str | None = self._corpus.format
        if form == "auto":
            sample = [row for item in head if isinstance(item, RowBatch) for row in item.values]
            form = detect(sample[:DETECTION_ROWS], self._corpus.columns)
        self.format = form or UNKNOWN
        shelf = _Shelf(self._shard, Parser(form, self._corpus) if form else None, self._images)
        for item in chain(head, self._items):
            shelf.put(item)
            if shelf.size >= PIECE_BYTES:
                yield shelf.piece()
        head.clear()
        shelf.close()
        self.rows_in, self.candidates_in, self.not_finite = shelf.rows_in, shelf.candidates_in, shelf.not_finite
        self.file_problem = shelf.file_problem
        self.mapped = shelf.parser.mapped if shelf.parser else Mapped()
        yield shelf.piece()

    def _until_parsed(self) -> Iterator[RowBatch | RawRow]:
        """Yield the first rows, until DETECTION_ROWS of them have values, but at most DETECTION_LIMIT."""
        seen = parsed = 0
        for item in self._items:
            yield item
            count = len(item.values) if isinstance(item, RowBatch) else 0
            seen += max(count, 1)
            parsed += count
            if parsed >= DETECTION_ROWS or seen >= DETECTION_LIMIT:
                return


@dataclass
class _Shelf:
    """Collects the rows of both tables."""

    shard: str
    parser: Parser | None
    images: ImageFolder
    accepted: list[tuple[object, ...]] = field(default_factory=list)
    rejected: list[tuple[object, ...]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    details: dict[str, str] = field(default_factory=dict)
    rows_in: int = 0
    rows_accepted: int = 0
    candidates_in: int = 0
    not_finite: int = 0
    size: int = 0
    file_problem: str | None = None

    def put(self, item: RowBatch | RawRow) -> None:
        """Accept or reject rows."""
        if isinstance(item, RawRow):
            self.put_row(item)
        else:
            self.not_finite += item.not_finite
            for position in range(len(item.values)):
                self.put_row(item.row(position))

    def put_row(self, row: RawRow) -> None:
        """Accept or reject one row."""
        self.rows_in += row.index >= 0
        if row.value is None:
            problem = row.problem or Refused("not_object", "the row has no values")
            self.reject(row, -1, problem)
            if row.ends_file:
                self.file_problem = problem.detail
            return
        try:
            results = self.samples(row.value, row.index)
        except Refused as refusal:
            self.reject(row, -1, refusal)
            return
        refusals = [result for result in results if isinstance(result, Refused)]
        if len(refusals) == len(results):
            self.reject(row, -1, refusals[0])
            return
        self.rows_accepted += 1
        self.candidates_in += len(results)
        for candidate, result in enumerate(results):
            if isinstance(result, Refused):
                self.reject(row, candidate, result)
            else:
                self.accepted.append(result)
                self.size += sum(len(value) for value in result if isinstance(value, str))

    def samples(self, row: Row, index: int) -> list[tuple[object, ...] | Refused]:
        """Return the row's candidates as rows of `raw_corpus`, or their refusals."""
        if self.parser is None:
            names = ", ".join(sorted(row))[:200].replace("\0", " ")
            raise Refused(
                "unknown_format", f"unknown fields: {names}. Map them under corpus.columns, or set corpus.format."
            )
        results: list[tuple[object, ...] | Refused] = []
        for candidate, draft in enumerate(self.parser.parse(row)):
            if isinstance(draft, Refused):
                results.append(draft)
            else:
                results.append(self.sample(draft, index, candidate))
        return results

    def sample(self, draft: Draft, index: int, candidate: int) -> tuple[object, ...]:
        """Return one row of `raw_corpus`, in column order."""
        images = [self.images.take(source) for source in draft.images]
        return (
            *identify(draft.turns, [identity for _, identity in images], draft.response, draft.answer, draft.steps),
            self.shard,
            index,
            candidate,
            draft.source or self.shard,
            draft.domain,
            draft.generator,
            orjson.dumps([turn.record() for turn in draft.turns]).decode(),
            [reference for reference, _ in images],
            [digest_of_bytes(identity) for _, identity in images],
            draft.response,
            draft.answer,
            None if draft.steps is None else list(draft.steps),
            draft.correct,
            draft.reward,
            draft.extra,
        )

    def reject(self, row: RawRow, candidate: int, problem: Refused) -> None:
        """Add one row of `rejected_rows`."""
        place = (self.shard, row.index, candidate)
        self.rejected.append((*place, problem.reason, problem.detail, row.excerpt()))
        self.reasons[problem.reason] += 1
        self.details.setdefault(problem.reason, problem.detail)
        self.size += len(problem.detail) + EXCERPT_CHARS

    def close(self) -> None:
        """Finish after the last row: report a file without usable rows as a problem of the file."""
        if self.file_problem is None and not self.rows_in:
            empty = Refused("empty_file", "the file is empty. Write it again or remove it.")
            self.reject(RawRow(-1, None, empty, str, ends_file=True), -1, empty)
            self.file_problem = empty.detail
        if self.file_problem is None and not self.rows_accepted:
            ((reason, count),) = self.reasons.most_common(1)
            self.file_problem = (
                f"none of the {self.rows_in} rows can be used; {count} times {reason}: {self.details[reason]}"
            )

    def piece(self) -> Piece:
        """Return what has been collected since the last piece."""
        accepted = RAW_CORPUS.conform(pl.DataFrame(self.accepted, RAW_CORPUS.schema, orient="row"))
        rejected = REJECTED_ROWS.conform(pl.DataFrame(self.rejected, REJECTED_ROWS.schema, orient="row"))
        self.accepted, self.rejected, self.size = [], [], 0
        return Piece(accepted, rejected)
