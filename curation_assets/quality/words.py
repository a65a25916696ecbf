"""Words of texts, their stable hashes, and hashes of word runs, all as flat arrays.

The hashes are part of stored data, so they depend only on BLAKE2b and fixed arithmetic modulo 2^64: they are the
same on every machine and under every version of Polars and Python (whose own hashes are not).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow.compute as pc  # type: ignore[import-untyped]
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Positions = NDArray[np.int64]

# Scripts without spaces between words: each character is a word, or else a sentence would be one.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = rf"[{_UNSPACED}]|[\w--[{_UNSPACED}]]+"

# Amount of text processed at a time; it bounds the memory of every check.
BATCH_BYTES = 1 << 23

# Odd, with well distributed bits; from the finalizer of SplitMix64 (Steele et al. 2014).
_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)
_START = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


@dataclass(frozen=True)
class Words:
    """The concatenated words of some texts.

    Attributes:
        hashes: hash of each word [words].
        lengths: characters of each word [words].
        offsets: text t has the words offsets[t] to offsets[t + 1] [texts + 1].
    """

    hashes: Hashes
    lengths: Positions
    offsets: Positions

    @property
    def counts(self) -> Positions:
        """Number of words in each text [texts]."""
        return np.diff(self.offsets)

    def windows(self, n: int) -> tuple[Positions, Positions]:
        """Return every run of n words within a text: its start among the words, and its text; both [windows]."""
        counts = np.maximum(self.counts - n + 1, 0)
        return ranges(self.offsets[:-1], counts), np.repeat(np.arange(len(counts)), counts)


def split_words(texts: pl.Series) -> pl.Series:
    """Return the words of each text: List(String), null for null.

    Texts are converted to Unicode's NFKC form and lower case, so that full-width letters, ligatures, superscripts
    and accents in different encodings match. A word is a run of letters, marks, digits and underscores, or, in
    scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese), a single character.
    """
    return texts.cast(pl.String).str.normalize("NFKC").str.to_lowercase().str.extract_all(_WORD)


def hash_words(texts: pl.Series) -> Words:
    """Return the words of texts with stable 64-bit hashes; a null text has no words."""
    words = split_words(texts)
    offsets = np.concatenate([[0], np.cumsum(words.list.len().fill_null(0).to_numpy(), dtype=np.int64)])
    # Most words occur many times, so each distinct word is hashed once.
    encoded = pc.dictionary_encode(words.explode().drop_nulls().to_arrow())
    distinct = [] if len(encoded) == 0 else encoded.dictionary.to_pylist()
    codes = encoded.indices.to_numpy()
    digests = b"".join(hashlib.blake2b(word.encode(), digest_size=8).digest() for word in distinct)
    hashes = np.frombuffer(digests, dtype="<u8").astype(np.uint64)
    lengths = np.fromiter(map(len, distinct), dtype=np.int64, count=len(distinct))
    return Words(hashes[codes], lengths[codes], offsets)


def combine(parts: Iterable[NDArray[np.unsignedinteger]], seed: int = 0) -> Hashes:
    """Return one hash per row from the arrays' values in that order; all arrays have the same length.

    Raises:
        ValueError: there are no arrays.
    """
    state: Hashes | None = None
    for part in parts:
        state = (np.full(len(part), seed, dtype=np.uint64) + _START if state is None else state) ^ part
        state *= _MULTIPLIER
        state ^= state >> _HALF
    if state is None:
        raise ValueError("nothing to combine")
    return state


def ngram_hashes(words: Words, n: int, starts: Positions) -> Hashes:
    """Return the hash of the n words from each start: [starts]. Hashes of runs of different lengths differ."""
    return combine((words.hashes[starts + offset] for offset in range(n)), seed=n)


def ranges(firsts: Positions, counts: Positions) -> Positions:
    """Return first, first + 1, ... for each first, as many as its count, concatenated: [sum of counts]."""
    before = np.cumsum(counts) - counts
    return np.repeat(firsts - before, counts) + np.arange(int(counts.sum()), dtype=np.int64)


def slices(sizes: NDArray[np.integer], limit: int) -> Iterator[tuple[int, int]]:
    """Yield bounds of consecutive slices whose sizes sum to at most the limit; a larger size gets its own slice."""
    ends = np.cumsum(sizes, dtype=np.int64)
    start, done = 0, 0
    while start < len(ends):
        stop = max(start + 1, int(np.searchsorted(ends, done + limit, side="right")))
        yield start, stop
        start, done = stop, int(ends[stop - 1])


def batches(texts: pl.Series) -> Iterator[tuple[int, pl.Series]]:
    """Yield consecutive parts of the texts of about BATCH_BYTES, each with the index of its first row."""
    sizes = texts.cast(pl.String).str.len_bytes().fill_null(0).to_numpy()
    for start, stop in slices(sizes, BATCH_BYTES):
        yield start, texts.slice(start, stop - start)
