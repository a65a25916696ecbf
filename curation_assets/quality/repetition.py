"""Repetition statistics of Gopher (Rae et al. 2021, arXiv 2112.11446, Table A1).

Where the paper is ambiguous, this follows common implementations: a repetition is every occurrence after the first,
except for the most frequent n-gram, all of whose occurrences count. Characters covered by several n-grams count
once.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curation_assets.quality.words import Hashes, Positions, Words, batches, combine, hash_words, ngram_hashes

_TOP = (2, 3, 4)
_DUPLICATE = (5, 6, 7, 8, 9, 10)

REPETITION_LIMITS: dict[str, float] = {
    "duplicate_line_share": 0.30,
    "duplicate_paragraph_share": 0.30,
    "duplicate_line_characters": 0.20,
    "duplicate_paragraph_characters": 0.20,
    "top_2_gram_characters": 0.20,
    "top_3_gram_characters": 0.18,
    "top_4_gram_characters": 0.16,
    "duplicate_5_gram_characters": 0.15,
    "duplicate_6_gram_characters": 0.14,
    "duplicate_7_gram_characters": 0.13,
    "duplicate_8_gram_characters": 0.12,
    "duplicate_9_gram_characters": 0.11,
    "duplicate_10_gram_characters": 0.10,
}

Shares = NDArray[np.float64]


def repetition(texts: pl.Series) -> pl.DataFrame:
    """Return the repetition statistics of each text, all shares in 0..1.

    Blank lines are ignored, and lines are stripped; paragraphs are separated by blank lines. Words are those of
    `words.split_words`; characters of n-grams are those of their words, as a share of the characters of all words.

    Args:
        texts: String; nulls are allowed.

    Returns:
        One row per text, one Float64 column per name in REPETITION_LIMITS:
        duplicate_line_share, duplicate_paragraph_share: share of lines or paragraphs that occurred before.
        duplicate_line_characters, duplicate_paragraph_characters: share of their characters.
        top_N_gram_characters: share in the most frequent run of N words (0 if none occurs twice; in case of ties, the
            one that covers most).
        duplicate_N_gram_characters: share in runs of N words that occurred before.
        A share of nothing is null: for a null text, one without lines, or one without words.
    """
    parts = [pl.DataFrame(schema=dict.fromkeys(REPETITION_LIMITS, pl.Float64))]
    for _, batch in batches(texts.cast(pl.String)):
        paragraphs = batch.str.replace_all(r"\n\s*\n", "\n\n").str.split("\n\n")
        columns = _pieces(batch.str.split("\n"), "line") | _pieces(paragraphs, "paragraph") | _ngrams(hash_words(batch))
        parts.append(pl.DataFrame(columns).select(pl.col(REPETITION_LIMITS).fill_nan(None)))
    return pl.concat(parts)


def repetitive(frame: pl.DataFrame, limits: Mapping[str, float] = REPETITION_LIMITS) -> pl.Series:
    """Return the limits that each row of `repetition` exceeds: List(String), in the order of the limits.

    Reasoning traces repeat words more than the web text that the paper's limits were made for: choose suitable limits.

    Raises:
        ValueError: a limit names an unknown statistic.
    """
    if unknown := [name for name in limits if name not in REPETITION_LIMITS]:
        raise ValueError(
            f"unknown repetition statistic: {', '.join(unknown)}; known statistics are {', '.join(REPETITION_LIMITS)}"
        )
    if not limits:
        return pl.Series("repetitive", [[]] * len(frame), dtype=pl.List(pl.String))
    exceeded = [pl.when(pl.col(name) > limit).then(pl.lit(name)) for name, limit in limits.items()]
    return frame.select(pl.concat_list(exceeded).list.drop_nulls().alias("repetitive")).to_series()


def _pieces(pieces: pl.Series, name: str) -> dict[str, pl.Series]:
    """Return both shares of duplicates among the parts into which each text was split: List(String)."""
    rows = pl.DataFrame({"row": pl.arange(len(pieces), eager=True), "piece": pieces})
    piece = pl.col("piece").str.strip_chars()
    found = rows.explode("piece").select("row", piece).filter(pl.col("piece") != "")
    again, characters = pl.col("len") - 1, pl.col("piece").str.len_chars()
    counted = (
        found.group_by("row", "piece")
        .len()
        .group_by("row")
        .agg(
            share=again.sum() / pl.col("len").sum(),
            characters=(again * characters).sum() / (pl.col("len") * characters).sum(),
        )
    )
    counted = rows.select("row").join(counted, on="row", how="left", maintain_order="left")
    return {f"duplicate_{name}_share": counted["share"], f"duplicate_{name}_characters": counted["characters"]}


def _ngrams(words: Words) -> dict[str, pl.Series]:
    """Return the shares of characters in n-grams, NaN for texts without words."""
    ends = np.concatenate([[0], np.cumsum(words.lengths)])
    # Including the text's hash keeps texts apart, so that one sort is enough for all of them.
    text = np.repeat(np.arange(len(words.counts)), words.counts)
    own = combine([text.astype(np.uint64)])
    starts, _ = words.windows(_TOP[0])
    shares = {}
    for n in range(_TOP[0], _DUPLICATE[-1] + 1):
        places, first = _repeated(ngram_hashes(words, n, starts) ^ own[starts], starts)
        if n in _TOP:
            shares[f"top_{n}_gram_characters"] = _top_characters(places, first, n, text, ends, len(words.counts))
        if n in _DUPLICATE:
            shares[f"duplicate_{n}_gram_characters"] = _covered(places[~first], n, words)
        # A longer run can only repeat if both of its shorter runs do (and both are in its text).
        repeats = np.zeros(len(text) + 1, dtype=bool)
        repeats[places] = True
        starts = np.flatnonzero(repeats[:-1] & repeats[1:])
    totals = ends[words.offsets[1:]] - ends[words.offsets[:-1]]
    with np.errstate(invalid="ignore"):
        return {name: pl.Series(covered / totals) for name, covered in shares.items()}


def _repeated(keys: Hashes, starts: Positions) -> tuple[Positions, NDArray[np.bool_]]:
    """Return the starts whose keys occur more than once, by key and then in order, and which of them are the first."""
    order = np.argsort(keys, kind="stable")
    bounds = np.flatnonzero(np.concatenate([[True], np.diff(keys[order]) != 0, [True]])[: len(keys) + 1])
    counts = np.diff(bounds) if len(keys) else np.empty(0, dtype=np.int64)
    first = np.zeros(len(keys), dtype=bool)
    first[bounds[: len(counts)]] = True
    several = np.repeat(counts > 1, counts)
    return starts[order[several]], first[several]


def _top_characters(
    places: Positions, first: NDArray[np.bool_], n: int, text: Positions, ends: Positions, texts: int
) -> Positions:
    """Return the characters covered by the most frequent n-gram of each text: [texts]."""
    covered = np.zeros(texts, dtype=np.int64)
    if len(places) == 0:
        return covered
    before = np.where(first, 0, np.roll(places, 1) + n)
    characters = ends[places + n] - ends[np.maximum(places, before)]
    groups = np.flatnonzero(first)
    counts, sums, of = (
        np.diff(np.append(groups, len(places))),
        np.add.reduceat(characters, groups),
        text[places[groups]],
    )
    # Sorted by frequency, then by characters: the last entry of each text is the maximum.
    order = np.lexsort((sums, counts, of))
    last = np.append(np.diff(of[order]) != 0, True)
    covered[of[order][last]] = sums[order][last]
    return covered


def _covered(places: Positions, n: int, words: Words) -> Positions:
    """Return the characters of each text's words within a run of n words starting at one of the places: [texts]."""
    edges = np.zeros(len(words.lengths) + 1, dtype=np.int64)
    np.add.at(edges, places, 1)
    np.add.at(edges, places + n, -1)
    characters = np.concatenate([[0], np.cumsum(np.where(np.cumsum(edges[:-1]) > 0, words.lengths, 0))])
    covered: Positions = characters[words.offsets[1:]] - characters[words.offsets[:-1]]
    return covered
