"""Overlap of texts with held-out benchmarks: which items' word n-grams stand in a text, and how many of them.

The method of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C: training documents that share a 13-gram with a
test item), with the 8-grams of Tülu 3 (Lambert et al. 2024, arXiv 2411.15124) and much like its measure: how much of a
test item stands in a training sample. Paraphrases are not found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl

from curation_assets.corpus.containers import read_rows
from curation_assets.quality.words import Hashes, Positions, Words, batches, hash_words, ngram_hashes, ranges, slices
from curation_resources.errors import UserError

DEFAULT_N = 8
# Items shorter than an n-gram are matched as a whole down to this; "what is it" would be found everywhere.
LEAST_WORDS = 4

# The text of a benchmark's row, if no field is named: the first of these that holds text, in any case.
TEXT_FIELDS = ("question", "problem", "prompt", "instruction", "input", "query", "text", "content", "goal", "sentence")

# Pairs of text and item that are counted at a time.
_PAIRS_AT_ONCE = 1 << 22
_MAX_ROW_BYTES = 1 << 26


class BenchmarkError(UserError):
    """A benchmark's file cannot be used as it is."""


@dataclass(frozen=True)
class BenchmarkIndex:
    """Which n-grams the items of some benchmarks hold; build it with `of`.

    Attributes:
        n: words of an n-gram.
        names: the benchmarks, sorted.
        items: items that are matched, by benchmark.
        skipped: items too short to be matched (fewer than min(n, LEAST_WORDS) words), by benchmark.
    """

    n: int
    names: tuple[str, ...]
    items: dict[str, int]
    skipped: dict[str, int]
    # Sorted distinct n-grams; those at place g stand in the items _holders[_bounds[g] : _bounds[g + 1]].
    _grams: Hashes = field(repr=False)
    _bounds: Positions = field(repr=False)
    _holders: Positions = field(repr=False)
    # Of each item: its benchmark's place in names, its index there, and how many distinct n-grams it has.
    _benchmark: Positions = field(repr=False)
    _number: Positions = field(repr=False)
    _size: Positions = field(repr=False)
    _lengths: tuple[int, ...] = field(repr=False)

    @classmethod
    def of(cls, benchmarks: Mapping[str, Sequence[str]], n: int = DEFAULT_N) -> BenchmarkIndex:
        """The index of benchmarks: name -> the texts of its items.

        Items with fewer than n words are matched as a whole, and with fewer than LEAST_WORDS as well, skipped.

        Raises:
            ValueError: n is below 1.
        """
        if n < 1:
            raise ValueError(f"n is at least 1, not {n}")
        names = tuple(sorted(benchmarks))
        texts = [text for name in names for text in benchmarks[name]]
        sizes = [len(benchmarks[name]) for name in names]
        benchmark = np.repeat(np.arange(len(names)), sizes)
        number = np.concatenate([np.arange(0), *(np.arange(size) for size in sizes)])
        words = hash_words(pl.Series(texts, dtype=pl.String))
        used = np.where(words.counts >= min(n, LEAST_WORDS), np.minimum(words.counts, n), 0)
        hashes, items = [np.empty(0, dtype=np.uint64)], [np.empty(0, dtype=np.int64)]
        lengths = tuple(int(length) for length in np.unique(used[used > 0]))
        for length in lengths:
            starts, item = words.windows(length)
            mine = used[item] == length
            hashes.append(ngram_hashes(words, length, starts[mine]))
            items.append(item[mine])
        gram, holder = np.concatenate(hashes), np.concatenate(items)
        order = np.lexsort((holder, gram))
        gram, holder = gram[order], holder[order]
        # An item that repeats an n-gram holds it once.
        distinct = np.append(True, (np.diff(gram) != 0) | (np.diff(holder) != 0))[: len(gram)]
        gram, holder = gram[distinct], holder[distinct]
        grams, first = np.unique(gram, return_index=True)
        matched = np.bincount(benchmark[used > 0], minlength=len(names))
        return cls(
            n=n,
            names=names,
            items=dict(zip(names, matched.tolist(), strict=True)),
            skipped={name: size - int(kept) for name, size, kept in zip(names, sizes, matched, strict=True)},
            _grams=grams,
            _bounds=np.append(first, len(gram)),
            _holders=holder,
            _benchmark=benchmark,
            _number=number,
            _size=np.bincount(holder, minlength=len(texts)),
            _lengths=lengths,
        )

    def matches(self, texts: pl.Series) -> pl.DataFrame:
        """What each text shares with the benchmarks.

        Args:
            texts: String; nulls are allowed.

        Returns:
            One row per text, lists of one length in a row, empty if it shares no n-gram, null for a null text:
            benchmark (List(String)): the benchmarks that it shares an n-gram with, sorted.
            shared (List(Float64)): for each, the share of its best-matching item's distinct n-grams that stand in
            the text, in (0, 1].
            item (List(Int64)): that item's index, the first of several.
        """
        parts = [_NO_MATCH]
        for start, batch in batches(texts):
            parts.extend(part.with_columns(pl.col("row") + start) for part in self._batch_matches(hash_words(batch)))
        lists = pl.concat(parts).group_by("row", maintain_order=True).agg("benchmark", "shared", "item")
        rows = pl.DataFrame({"row": pl.arange(len(texts), eager=True), "null": texts.is_null()})
        joined = rows.join(lists, on="row", how="left", maintain_order="left")
        return joined.select(
            pl.when(~pl.col("null")).then(pl.col(name).fill_null([])).alias(name)
            for name in ("benchmark", "shared", "item")
        )

    def _batch_matches(self, words: Words) -> list[pl.DataFrame]:
        """Rows of text, benchmark, share and item of one batch, sorted."""
        if len(self._grams) == 0:
            return []
        keys = [np.empty(0, dtype=np.int64)]
        for length in self._lengths:
            starts, text = words.windows(length)
            hashes = ngram_hashes(words, length, starts)
            place = np.minimum(np.searchsorted(self._grams, hashes), len(self._grams) - 1)
            found = self._grams[place] == hashes
            keys.append(text[found] * len(self._grams) + place[found])
        text, gram = np.divmod(np.unique(np.concatenate(keys)), len(self._grams))
        holders = self._bounds[gram + 1] - self._bounds[gram]
        # One n-gram may stand in thousands of items (a benchmark's fixed phrase): the pairs are never all at hand.
        of_text = np.bincount(text, weights=holders).astype(np.int64)
        bounds = np.searchsorted(text, np.arange(len(of_text) + 1))
        parts = []
        for first, last in slices(of_text, _PAIRS_AT_ONCE):
            part = slice(bounds[first], bounds[last])
            item = self._holders[ranges(self._bounds[gram[part]], holders[part])]
            parts.append(self._best(np.repeat(text[part], holders[part]), item))
        return parts

    def _best(self, text: Positions, item: Positions) -> pl.DataFrame:
        """The best item of each text and benchmark, out of one pair of text and item for each n-gram they share."""
        if len(text) == 0:
            return _NO_MATCH
        first, items = int(text[0]), len(self._number)
        keys, shared = _counted((text - first) * items + item, (int(text[-1]) - first + 1) * items)
        text, item = np.divmod(keys, items)
        share, benchmark = shared / self._size[item], self._benchmark[item]
        # Items stand by benchmark and number, so what belongs together does already.
        starts = np.append(True, (np.diff(text) != 0) | (np.diff(benchmark) != 0))
        highest = np.maximum.reduceat(share, np.flatnonzero(starts))
        group = np.cumsum(starts) - 1
        best = np.flatnonzero(share == highest[group])
        best = best[np.append(True, np.diff(group[best]) != 0)]
        return pl.DataFrame(
            {
                "row": text[best] + first,
                "benchmark": pl.Series(self.names, dtype=pl.String).gather(benchmark[best]),
                "shared": share[best],
                "item": self._number[item[best]],
            },
            schema=_NO_MATCH.schema,
        )


def _counted(keys: Positions, cells: int) -> tuple[Positions, Positions]:
    """The distinct keys, sorted, and how often each occurs; keys are below cells."""
    if len(keys) * 4 < cells:
        return np.unique(keys, return_counts=True)
    # Where nearly every item shares a phrase with the texts, counting into cells is faster than sorting.
    counts = np.bincount(keys, minlength=cells)
    found = np.flatnonzero(counts)
    return found, counts[found]


_NO_MATCH = pl.DataFrame(schema={"row": pl.Int64, "benchmark": pl.String, "shared": pl.Float64, "item": pl.Int64})


def read_benchmark(path: Path, field: str | None = None) -> list[str]:
    """The texts of a benchmark's items, in the file's order.

    Args:
        path: .jsonl, .jsonl.gz or .parquet (a row is an item), .json (a list, or an object with one list, of rows
            or of texts), .txt (a line is an item; blank ones are not).
        field: the field of a row that holds the text; if None, the first of TEXT_FIELDS that does, whatever its
            case. A .txt file has none.

    Raises:
        BenchmarkError: the file cannot be read, a row has no such text, or there are no rows; the message names the
            file, the row and what to do.
    """
    ending = path.name.lower()
    if ending.endswith(".txt"):
        texts = [line for line in _content(path).split("\n") if line.strip()]
    elif ending.endswith(".json"):
        texts = [_text_of(row, field, path, f"entry {index}") for index, row in enumerate(_json_rows(path), 1)]
    elif ending.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        unit = "row" if ending.endswith(".parquet") else "line"
        texts = []
        for raw in read_rows(path, path.name, _MAX_ROW_BYTES):
            if raw.problem is not None:
                where = "" if raw.index < 0 else f", {unit} {raw.index + 1}"
                raise BenchmarkError(f"benchmark {path}{where}: {raw.problem.detail}")
            texts.append(_text_of(raw.value, field, path, f"{unit} {raw.index + 1}"))
    else:
        raise BenchmarkError(f"benchmark {path}: rename it to .jsonl, .jsonl.gz, .json, .parquet or .txt")
    if not texts:
        raise BenchmarkError(f"benchmark {path} has no items: name another file")
    return texts


def _text_of(row: Any, field: str | None, path: Path, where: str) -> str:
    if isinstance(row, str) and field is None:
        return row
    if not isinstance(row, dict):
        raise BenchmarkError(f"benchmark {path}, {where}: not an object with fields; write one object an item")
    if field is not None:
        if isinstance(value := row.get(field), str):
            return value
        wrong = f"the field {field} is {'not text' if field in row else 'missing'}"
        raise BenchmarkError(f"benchmark {path}, {where}: {wrong}; its fields are {', '.join(map(str, row))}")
    by_name = {str(name).lower(): value for name, value in reversed(row.items())}
    for name in TEXT_FIELDS:
        if isinstance(value := by_name.get(name), str) and value.strip():
            return value
    raise BenchmarkError(
        f"benchmark {path}, {where}: none of the fields {', '.join(TEXT_FIELDS)} holds text; "
        f"name the field that does, out of {', '.join(map(str, row)) or 'none'}"
    )


def _content(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise BenchmarkError(f"benchmark {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"benchmark {path}: byte {error.start} is not UTF-8; convert the file to UTF-8") from error


def _json_rows(path: Path) -> list[Any]:
    try:
        content = orjson.loads(_content(path))
    except orjson.JSONDecodeError as error:
        raise BenchmarkError(
            f"benchmark {path}, line {error.lineno}: not JSON ({error.msg}); with one object a line it is .jsonl"
        ) from error
    lists = [value for value in content.values() if isinstance(value, list)] if isinstance(content, dict) else [content]
    if len(lists) != 1 or not isinstance(lists[0], list):
        raise BenchmarkError(f"benchmark {path}: it must be a list of items, or an object that holds one list of them")
    return lists[0]
