"""From a landing file to the rows of `raw_corpus` and `rejected_rows`, and the account that nothing is lost.

A row is a line that is not blank, or a Parquet row. Each ends in exactly one of two ways: one or more of its
candidate responses are accepted (those that are not are rejected under their own index), or the row as a
whole is rejected, once, with candidate -1. What is wrong with a file as a whole is rejected under row -1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import orjson
import polars as pl

from curation_assets.corpus.containers import RawRow, read_rows
from curation_assets.corpus.drafts import Draft, Refused
from curation_assets.corpus.fields import Row
from curation_assets.corpus.formats import Parser, detect
from curation_assets.corpus.identity import identify
from curation_assets.corpus.images import ImageFolder, digest_of_bytes
from curation_assets.corpus_settings import Corpus
from curation_assets.tables import RAW_CORPUS, REJECTED_ROWS

DETECTION_ROWS = 50
# Rows are held while the format is not known: a file of broken lines must not fill the memory.
DETECTION_LIMIT = 1000
UNKNOWN = "unknown"


@dataclass(frozen=True)
class ShardRows:
    """What a landing file held.

    accepted: `raw_corpus`; rejected: `rejected_rows`; rows_in: rows of the file, blank lines not counted;
    candidates_in: responses of the rows that have an accepted one; format: its name, or "unknown";
    file_problem: what is wrong with the file as a whole and how to mend it.
    """

    accepted: pl.DataFrame
    rejected: pl.DataFrame
    rows_in: int
    candidates_in: int
    format: str
    file_problem: str | None


@dataclass(frozen=True)
class Account:
    """Where the rows and candidates of a shard went; `balanced`: each is accounted for exactly once."""

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
    """Reads one landing file; bad input never raises, it is in `rejected` and `file_problem`.

    Args:
        data: the file, or its bytes.
        shard: its partition key.
        name: its name, whose ending says what it is (.jsonl, .jsonl.gz, .parquet).
        corpus: format, mapped columns and the longest row allowed.
        images_root: the file's own folder, where image paths lead; default: that of `data` if it is a path.
        keep_image: stores the bytes of an image that a row holds under their digest; None: they are not kept.
    """
    if images_root is None and isinstance(data, Path):
        images_root = data.parent
    rows = read_rows(data, name, corpus.max_row_bytes)
    head = list(_until_parsed(rows, DETECTION_ROWS))
    form: str | None = corpus.format
    if form == "auto":
        form = detect([row.value for row in head if row.value is not None], corpus.columns)
    shelf = _Shelf(shard, Parser(form, corpus.columns) if form else None, ImageFolder(images_root, keep_image))
    for row in chain(head, rows):
        shelf.put(row)
    return shelf.finish(form or UNKNOWN)


def account(rows: ShardRows) -> Account:
    """Counts again, from the tables alone, and compares with what was counted while reading."""
    accepted = set(rows.accepted["row"].to_list())
    whole = rows.rejected.filter((pl.col("row") >= 0) & (pl.col("candidate") == -1))["row"].to_list()
    single = rows.rejected.filter(pl.col("candidate") >= 0)
    places = rows.accepted.select("row", "candidate").vstack(single.select("row", "candidate"))
    return Account(
        rows_in=rows.rows_in,
        rows_accepted=len(accepted),
        rows_rejected=len(whole),
        candidates_in=rows.candidates_in,
        candidates_accepted=rows.accepted.height,
        candidates_rejected=single.height,
        balanced=(
            rows.rows_in == len(accepted) + len(whole)
            and rows.candidates_in == places.height
            and len(set(whole)) == len(whole)
            and accepted.isdisjoint(whole)
            and accepted.issuperset(single["row"].to_list())
            and not places.is_duplicated().any()
        ),
    )


def _until_parsed(rows: Iterator[RawRow], count: int) -> Iterator[RawRow]:
    """The first rows, through the count-th that has values, but no more than DETECTION_LIMIT."""
    for row in islice(rows, DETECTION_LIMIT):
        yield row
        count -= row.value is not None
        if not count:
            return


@dataclass
class _Shelf:
    """Collects the rows of both tables, column by column."""

    shard: str
    parser: Parser | None
    images: ImageFolder
    accepted: list[tuple[object, ...]] = field(default_factory=list)
    rejected: list[tuple[object, ...]] = field(default_factory=list)
    rows_in: int = 0
    candidates_in: int = 0
    file_problem: str | None = None

    def put(self, row: RawRow) -> None:
        """Accepts or rejects one row."""
        self.rows_in += row.index >= 0
        if row.value is None:
            problem = row.problem or Refused("not_object", "the row holds no values")
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
        self.candidates_in += len(results)
        for candidate, result in enumerate(results):
            if isinstance(result, Refused):
                self.reject(row, candidate, result)
            else:
                self.accepted.append(result)

    def samples(self, row: Row, index: int) -> list[tuple[object, ...] | Refused]:
        """The row's candidates as rows of `raw_corpus`, or why they are none."""
        if self.parser is None:
            names = ", ".join(sorted(row))[:200].replace("\0", " ")
            raise Refused("unknown_format", f"fields: {names}; name them in corpus.columns, or set corpus.format")
        results: list[tuple[object, ...] | Refused] = []
        for candidate, draft in enumerate(self.parser.parse(row)):
            if isinstance(draft, Refused):
                results.append(draft)
            else:
                results.append(self.sample(draft, index, candidate))
        return results

    def sample(self, draft: Draft, index: int, candidate: int) -> tuple[object, ...]:
        """One row of `raw_corpus`, in the order of its columns."""
        images = [self.images.take(source) for source in draft.images]
        return (
            *identify(draft.turns, [identity for _, identity in images], draft.response, draft.answer, draft.steps),
            self.shard,
            index,
            candidate,
            draft.source or self.shard,
            draft.domain,
            draft.generator,
            orjson.dumps([{"role": role, "content": content} for role, content in draft.turns]).decode(),
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
        """One row of `rejected_rows`."""
        place = (self.shard, row.index, candidate)
        self.rejected.append((*place, problem.reason, problem.detail, row.excerpt()))

    def finish(self, form: str) -> ShardRows:
        """Both tables; a file of which nothing could be used is a problem of the file."""
        problem = self.file_problem
        if problem is None and not self.rows_in:
            empty = Refused("empty_file", "the file is empty: no rows; write it again or remove it")
            self.reject(RawRow(-1, None, empty, str, ends_file=True), -1, empty)
            problem = empty.detail
        if problem is None and not self.accepted:
            reasons = Counter(str(row[3]) for row in self.rejected)
            reason, count = reasons.most_common(1)[0]
            detail = next(str(row[4]) for row in self.rejected if row[3] == reason)
            problem = f"none of the {self.rows_in} rows can be used; {count} times {reason}: {detail}"
        return ShardRows(
            accepted=RAW_CORPUS.conform(pl.DataFrame(self.accepted, RAW_CORPUS.schema, orient="row")),
            rejected=REJECTED_ROWS.conform(pl.DataFrame(self.rejected, REJECTED_ROWS.schema, orient="row")),
            rows_in=self.rows_in,
            candidates_in=self.candidates_in,
            format=form,
            file_problem=problem,
        )
