"""Near-duplicates by MinHash: a signature per text, stored per shard, and groups of texts over all shards.

The share of equal entries of two signatures estimates the Jaccard similarity of the texts' sets of word shingles
(Broder 1997, "On the resemblance and containment of documents"). Candidate pairs are those that agree in a whole
band of entries (Indyk and Motwani 1998). The signatures are the library rensa's R-MinHash.
"""

from __future__ import annotations

import math

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curation_assets.quality.extras import filters_library
from curation_assets.quality.words import Hashes, Positions, Words, batches, combine, hash_words, ngram_hashes, ranges

Signatures = NDArray[np.uint32]

# Buckets up to this size are compared pair by pair, larger ones with a few of their members.
_SMALL_BUCKET = 32
_LEADERS = 16
_COMPARED_AT_ONCE = 1 << 16
# If bands cannot guarantee to catch a pair at the threshold, the probability of missing it is at most this.
_MISS = 0.01
_ROWS_WITHOUT_CERTAINTY = 3


def signature_algorithm() -> str:
    """Return the algorithm and version that a stored signature depends on, in addition to its arguments.

    Raises:
        MissingExtraError: the extra `filters` is not installed.
    """
    return f"rensa R-MinHash {filters_library('rensa').RMinHash.ALGORITHM_VERSION}"


def signatures(texts: pl.Series, *, permutations: int = 128, shingle_words: int = 5, seed: int = 0) -> pl.Series:
    """Return the MinHash signature of each text.

    It depends on the text and the arguments only, not on other texts or their order. Words are those of
    `words.split_words`; a text with fewer than `shingle_words` words is one shingle of all its words.

    Args:
        texts: String; nulls are allowed.
        permutations: entries per signature; the standard deviation of an estimated Jaccard similarity j is at most
            sqrt(j (1 - j) / permutations).
        shingle_words: words per shingle, at least 1.
        seed: seed of the hash functions.

    Returns:
        List(UInt32) of `permutations` entries, one per text; null for a null text and for one without words.

    Raises:
        MissingExtraError: the extra `filters` is not installed.
        ValueError: permutations or shingle_words is below 1.
    """
    if permutations < 1 or shingle_words < 1:
        raise ValueError("permutations and shingle_words must be at least 1")
    digests = filters_library("rensa").RMinHash.digest_matrix_from_flat_token_hashes
    parts = [pl.Series(dtype=pl.List(pl.UInt32))]
    for _, batch in batches(texts):
        words = hash_words(batch)
        shingles, counts = _shingles(words, shingle_words)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
        rows = np.array(digests(shingles, offsets, permutations, seed).to_rows(), dtype=np.uint32)
        frame = pl.DataFrame({"signature": pl.Series(rows).arr.to_list(), "shingles": counts})
        parts.append(frame.select(pl.when(pl.col("shingles") > 0).then(pl.col("signature"))).to_series())
    return pl.concat(parts).alias("signature")


def _shingles(words: Words, n: int) -> tuple[Hashes, Positions]:
    """Return the hashes of the shingles, text after text, and the number of shingles per text."""
    counts = np.where(words.counts < n, np.minimum(words.counts, 1), words.counts - n + 1)
    of = np.repeat(words.counts, counts)
    starts = ranges(words.offsets[:-1], counts)
    shingles = np.empty(len(starts), dtype=np.uint64)
    for length in range(1, n + 1):
        mine = of >= n if length == n else of == length
        shingles[mine] = ngram_hashes(words, length, starts[mine])
    return shingles, counts


def near_duplicate_groups(sample_ids: pl.Series, signatures: pl.Series, threshold: float) -> pl.DataFrame:
    """Group near-duplicates: connected components over pairs with an estimated similarity of at least the threshold.

    From a threshold of about 0.68 (with 128 entries), every such pair in a bucket of at most 32 is compared: there are
    so many bands that two signatures with few enough differing entries agree in one of them. Below, a pair at the
    threshold is missed with a probability of at most 1 %. Buckets of more than 32 distinct signatures are compared with
    16 of their members only, so that boilerplate cannot make the work quadratic; a pair skipped there may still be
    found in another band. The result does not depend on the order of rows.

    Args:
        sample_ids: String; repeated ids have equal signatures.
        signatures: List(UInt32) from `signatures`, all with the same arguments; null matches nothing.
        threshold: in (0, 1].

    Returns:
        sample_id (each once, sorted) and representative: the smallest sample_id of its group, itself if it is alone.

    Raises:
        ValueError: the threshold is out of range, or the signatures differ in length.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"the threshold must be in (0, 1], not {threshold}")
    frame = pl.DataFrame({"sample_id": sample_ids, "signature": signatures})
    frame = frame.unique("sample_id", keep="any").sort("sample_id")
    signed = frame.filter(pl.col("signature").is_not_null())
    alone = frame.select("sample_id", representative="sample_id")
    if len(signed) == 0:
        return alone
    matrix = _matrix(signed["signature"])
    # Texts that differ only in punctuation have the same signature, which is compared once.
    _, firsts, inverse = np.unique(combine(matrix.T), return_index=True, return_inverse=True)
    order = np.argsort(firsts)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    labels = _components(matrix[firsts[order]], threshold)
    representatives = signed["sample_id"].gather(firsts[order][labels[rank[inverse]]])
    found = signed.select("sample_id", representative=representatives)
    return alone.update(found, on="sample_id", maintain_order="left")


def _matrix(signatures: pl.Series) -> Signatures:
    lengths = signatures.list.len()
    if lengths.n_unique() != 1 or lengths[0] == 0:
        raise ValueError("the signatures differ in length. Compute them with the same permutations.")
    return signatures.explode().to_numpy().astype(np.uint32, copy=False).reshape(len(signatures), -1)


def _entries_needed(threshold: float, permutations: int) -> int:
    """Return the smallest number of equal entries whose share is at least the threshold."""
    needed = math.floor(threshold * permutations)
    return needed if needed / permutations >= threshold else needed + 1


def _bands(threshold: float, permutations: int) -> list[slice]:
    """Return the entries of each band: as wide as possible while a pair at the threshold is still caught.

    If d entries may differ, one of d + 1 bands has no difference. If that makes bands narrower than three entries,
    which nearly all pairs share, bands of three are used as long as they miss few pairs.
    """
    needed = _entries_needed(threshold, permutations)
    rows = permutations // (permutations - needed + 1)
    if rows < _ROWS_WITHOUT_CERTAINTY:
        share = needed / permutations
        wider = range(rows + 1, min(_ROWS_WITHOUT_CERTAINTY, permutations) + 1)
        rows = max([rows, *(r for r in wider if (1 - share**r) ** (permutations // r) <= _MISS)])
    return [slice(start, start + rows) for start in range(0, permutations - rows + 1, rows)]


def _components(matrix: Signatures, threshold: float) -> Positions:
    """Return the smallest row of each row's component: [rows]."""
    pairs = _Pairs(matrix, _entries_needed(threshold, matrix.shape[1]))
    for band in _bands(threshold, matrix.shape[1]):
        keys = combine(matrix[:, band].T)
        order = np.argsort(keys, kind="stable")
        starts = np.concatenate([[True], np.diff(keys[order]) != 0])
        bucket = np.cumsum(starts) - 1
        size = np.bincount(bucket)[bucket]
        shared = size > 1
        pairs.join_buckets(order[shared], bucket[shared], size[shared])
    return pairs.labels


class _Pairs:
    """Joins pairs of rows; `labels` holds the smallest row of each row's component so far."""

    def __init__(self, matrix: Signatures, needed: int) -> None:
        self._matrix = matrix
        self._needed = needed
        self.labels: Positions = np.arange(len(matrix))

    def join_buckets(self, rows: Positions, bucket: Positions, size: Positions) -> None:
        """Join near rows within buckets, given rows sorted by bucket, their buckets, and the sizes of these buckets."""
        rest = self._join_with_first(rows, bucket)
        # Most buckets are one group by now. In the others every member counts, because a row that is not near the first
        # may be near to one that is.
        unsettled = np.zeros(int(bucket[-1]) + 1 if len(bucket) else 0, dtype=bool)
        unsettled[bucket[rest]] = True
        small = unsettled[bucket] & (size <= _SMALL_BUCKET)
        self._join_all(rows[small], bucket[small])
        rest = rest[size[rest] > _SMALL_BUCKET]
        for _ in range(_LEADERS - 1):
            rest = rest[self._join_with_first(rows[rest], bucket[rest])]

    def _join_with_first(self, rows: Positions, bucket: Positions) -> Positions:
        """Join each row with the first of its bucket, and return the positions of the rows that are not near it."""
        if len(rows) == 0:
            return np.empty(0, dtype=np.int64)
        starts = np.flatnonzero(np.concatenate([[True], np.diff(bucket) != 0]))
        firsts = np.repeat(rows[starts], np.diff(np.append(starts, len(rows))))
        self._join(firsts, rows)
        return np.flatnonzero(self.labels[firsts] != self.labels[rows])

    def _join_all(self, rows: Positions, bucket: Positions) -> None:
        for distance in range(1, _SMALL_BUCKET):
            left, right = rows[:-distance], rows[distance:]
            same = bucket[:-distance] == bucket[distance:]
            if not same.any():
                return
            self._join(left[same], right[same])

    def _join(self, left: Positions, right: Positions) -> None:
        """Join the pairs that are near and not yet joined."""
        apart = self.labels[left] != self.labels[right]
        left, right = left[apart], right[apart]
        near = np.zeros(len(left), dtype=bool)
        for start in range(0, len(left), _COMPARED_AT_ONCE):
            part = slice(start, start + _COMPARED_AT_ONCE)
            equal = self._matrix[left[part]] == self._matrix[right[part]]
            near[part] = np.count_nonzero(equal, axis=1) >= self._needed
        left, right = left[near], right[near]
        while len(left):
            one, other = self.labels[left], self.labels[right]
            np.minimum.at(self.labels, np.maximum(one, other), np.minimum(one, other))
            while not np.array_equal(shorter := self.labels[self.labels], self.labels):
                self.labels = shorter
            apart = self.labels[left] != self.labels[right]
            left, right = left[apart], right[apart]
