"""Overlap of texts with held-out benchmarks, by the word n-grams of benchmark items.

The method is that of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C: training documents that share a 13-gram
with a test item), with the 8-grams of Tülu 3 (Lambert et al. 2024, arXiv 2411.15124) and a similar measure: the
share of a test item that a training sample contains. Paraphrases are not detected.
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
# Items shorter than an n-gram are matched as a whole, down to this length; "what is it" would match everywhere.
LEAST_WORDS = 4

# Default field of a benchmark's row: the first of these, in any case, that contains text.
TEXT_FIELDS = ("question", "problem", "prompt", "instruction", "input", "query", "text", "content", "goal", "sentence")

# Number of text-item pairs counted at a time.
_PAIRS_AT_ONCE = 1 << 22
_MAX_ROW_BYTES = 1 << 26


class BenchmarkError(UserError):
    """A benchmark's file cannot be used."""


@dataclass(frozen=True)
class BenchmarkIndex:
    """The n-grams of the items of some benchmarks; build it with `of`.

    Attributes:
        n: words per n-gram.
        names: names of the benchmarks, sorted.
        items: number of matched items, by benchmark.
        skipped: number of items too short to match (fewer than min(n, LEAST_WORDS) words), by benchmark.
    """

    n: int
    names: tuple[str, ...]
    items: dict[str, int]
    skipped: dict[str, int]
    # Sorted distinct n-grams; n-gram g occurs in the items _holders[_bounds[g] : _bounds[g + 1]].
    _grams: Hashes = field(repr=False)
    _bounds: Positions = field(repr=False)
    _holders: Positions = field(repr=False)
    # Per item: the index of its benchmark in names, its index there, and its number of distinct n-grams.
    _benchmark: Positions = field(repr=False)
    _number: Positions = field(repr=False)
    _size: Positions = field(repr=False)
    _lengths: tuple[int, ...] = field(repr=False)

    @classmethod
    def of(cls, benchmarks: Mapping[str, Sequence[str]], n: int = DEFAULT_N) -> BenchmarkIndex:
        """Return the index of benchmarks: name -> texts of the items.

        Items with fewer than n words are matched as a whole; items with fewer than LEAST_WORDS as well are skipped.

        Raises:
            ValueError: n is below 1.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
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
        # Count an n-gram once per item, even if the item repeats it.
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
        """Return the overlap of each text with the benchmarks.

        Args:
            texts: String; nulls are allowed.

        Returns:
            One row per text with lists of equal length, empty without a shared n-gram, null for a null text:
            benchmark (List(String)): the benchmarks that share an n-gram with the text, sorted.
            shared (List(Float64)): for each, the largest share of one item's distinct n-grams found in the text, in (0,
                1].
            item (List(Int64)): index of that item, the first one in case of ties.
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
        """Return rows of text, benchmark, share and item for one batch, sorted."""
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
        # One n-gram may occur in thousands of items (a benchmark's fixed phrase), so the pairs are never all in memory.
        of_text = np.bincount(text, weights=holders).astype(np.int64)
        bounds = np.searchsorted(text, np.arange(len(of_text) + 1))
        parts = []
        for first, last in slices(of_text, _PAIRS_AT_ONCE):
            part = slice(bounds[first], bounds[last])
            item = self._holders[ranges(self._bounds[gram[part]], holders[part])]
            parts.append(self._best(np.repeat(text[part], holders[part]), item))
        return parts

    def _best(self, text: Positions, item: Positions) -> pl.DataFrame:
        """Return the best item of each text and benchmark, given one text-item pair per shared n-gram."""
        if len(text) == 0:
            return _NO_MATCH
        first, items = int(text[0]), len(self._number)
        keys, shared = _counted((text - first) * items + item, (int(text[-1]) - first + 1) * items)
        text, item = np.divmod(keys, items)
        share, benchmark = shared / self._size[item], self._benchmark[item]
        # Items are sorted by benchmark and number, so groups are contiguous.
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
    """Return the distinct keys, sorted, and their counts; all keys are below cells."""
    if len(keys) * 4 < cells:
        return np.unique(keys, return_counts=True)
    # If nearly every item shares a phrase with the texts, counting into cells is faster than sorting.
    counts = np.bincount(keys, minlength=cells)
    found = np.flatnonzero(counts)
    return found, counts[found]


_NO_MATCH = pl.DataFrame(schema={"row": pl.Int64, "benchmark": pl.String, "shared": pl.Float64, "item": pl.Int64})


def read_benchmark(path: Path, field: str | None = None) -> list[str]:
    """Return the texts of a benchmark's items, in the file's order.

    Args:
        path: .jsonl, .jsonl.gz or .parquet (one item per row), .json (a list, or an object with one list, of rows or of
            texts), .txt (one item per line; blank lines are skipped).
        field: the field that contains the text; if None, the first of TEXT_FIELDS that does, in any case. Not used for
            .txt files.

    Raises:
        BenchmarkError: the file cannot be read, a row has no text, or there are no rows; the message names the file,
            the row and the fix.
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
        raise BenchmarkError(
            f"benchmark {path}: unsupported file type. Rename it to .jsonl, .jsonl.gz, .json, .parquet or .txt."
        )
    if not texts:
        raise BenchmarkError(f"benchmark {path} has no items. Name another file.")
    return texts


def _text_of(row: Any, field: str | None, path: Path, where: str) -> str:
    if isinstance(row, str) and field is None:
        return row
    if not isinstance(row, dict):
        raise BenchmarkError(f"benchmark {path}, {where}: not an object with fields. Write one object per item.")
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
        f"benchmark {path}, {where}: none of the fields {', '.join(TEXT_FIELDS)} contains text. Name the field that "
        f"does; the row has {', '.join(map(str, row)) or 'none'}."
    )


def _content(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise BenchmarkError(f"benchmark {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BenchmarkError(
            f"benchmark {path}: byte {error.start} is not UTF-8. Convert the file to UTF-8."
        ) from error


def _json_rows(path: Path) -> list[Any]:
    try:
        content = orjson.loads(_content(path))
    except orjson.JSONDecodeError as error:
        raise BenchmarkError(
            f"benchmark {path}, line {error.lineno}: not JSON ({error.msg}). If the file has one object per line, "
            "rename it to .jsonl."
        ) from error
    lists = [value for value in content.values() if isinstance(value, list)] if isinstance(content, dict) else [content]
    if len(lists) != 1 or not isinstance(lists[0], list):
        raise BenchmarkError(
            f"benchmark {path}: must be a list of items, or an object that contains exactly one list of them"
        )
    return lists[0]
