"""MinHash signatures against true similarities, and groups against the comparison of all pairs."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from curation_assets.quality import words
from curation_assets.quality.near_duplicates import (
    _bands,
    _entries_needed,
    near_duplicate_groups,
    signature_algorithm,
    signatures,
)
from tests.quality.helpers import gsm8k, naive_words, texts


def series(values: list[str | None]) -> pl.Series:
    return pl.Series(values, dtype=pl.String)


def shingles(text: str, n: int) -> set[tuple[str, ...]]:
    found = naive_words(text)
    return {tuple(found[start : start + n]) for start in range(max(1, len(found) - n + 1))}


def brute_groups(ids: list[str], rows: list[list[int] | None], threshold: float) -> dict[str, str]:
    """Representatives, by comparing every pair and walking from each sample to all that it reaches."""
    near: dict[str, set[str]] = {name: set() for name in ids}
    signed = [(name, np.array(row)) for name, row in zip(ids, rows, strict=True) if row is not None]
    for (one, left), (other, right) in combinations(signed, 2):
        if (left == right).mean() >= threshold:
            near[one].add(other)
            near[other].add(one)
    found = {}
    for name in ids:
        reached, todo = {name}, [name]
        while todo:
            new = near[todo.pop()] - reached
            reached |= new
            todo += new
        found[name] = min(reached)
    return found


def groups(ids: list[str], rows: list[list[int] | None], threshold: float) -> dict[str, str]:
    frame = near_duplicate_groups(pl.Series(ids, dtype=pl.String), pl.Series(rows, dtype=pl.List(pl.UInt32)), threshold)
    assert frame.columns == ["sample_id", "representative"]
    assert frame["sample_id"].is_sorted()
    return dict(frame.iter_rows())


@given(texts, st.randoms())
def test_a_signature_depends_on_its_text_alone(values: list[str | None], shuffler: random.Random) -> None:
    together = signatures(series(values), permutations=16).to_list()
    order = list(range(len(values)))
    shuffler.shuffle(order)
    assert signatures(series([values[at] for at in order]), permutations=16).to_list() == [together[at] for at in order]
    assert [signatures(series([value]), permutations=16).to_list()[0] for value in values] == together
    for value, signature in zip(values, together, strict=True):
        has_words = value is not None and bool(words.split_words(series([value])).to_list()[0])
        assert (signature is not None) == has_words
        assert signature is None or len(signature) == 16


def test_batches_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    values: list[str | None] = ["one two three four five six", None, "", "今天天气很好", "one two"]
    whole = signatures(series(values))
    monkeypatch.setattr(words, "BATCH_BYTES", 8)
    assert signatures(series(values)).to_list() == whole.to_list()
    assert whole.dtype == pl.List(pl.UInt32)
    assert signatures(series([])).dtype == pl.List(pl.UInt32)


def test_signatures_are_what_they_were_when_they_were_stored() -> None:
    found = signatures(series(["Two apples and three pears are five fruits."]), permutations=4).to_list()
    assert (signature_algorithm(), found) == ("rensa R-MinHash 2", STORED)


STORED = [[2800498935, 313320753, 863344352, 657294682]]


def test_case_punctuation_and_repeated_shingles_do_not_count_and_seeds_do() -> None:
    one = "Two apples, and three pears: two apples, and three pears."
    other = "two apples and three pears TWO APPLES AND three pears two apples and three pears"
    both = signatures(series([one, other])).to_list()
    assert both[0] == both[1]
    assert signatures(series([one]), seed=1).to_list()[0] != both[0]
    assert signatures(series([one]), shingle_words=4).to_list()[0] != both[0]


@pytest.mark.parametrize("arguments", [{"permutations": 0}, {"shingle_words": 0}])
def test_arguments_out_of_range(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        signatures(series(["a"]), **arguments)


@pytest.mark.parametrize("length", [3, 12, 60, 400])
def test_the_share_of_equal_entries_estimates_the_true_similarity(length: int) -> None:
    draw = random.Random(length)
    names = [f"w{at}" for at in range(2000)]
    errors, bounds = [], []
    for _ in range(60):
        one = draw.choices(names, k=length)
        other = [draw.choice(names) if draw.random() < 0.1 * draw.random() else word for word in one]
        left, right = shingles(" ".join(one), 5), shingles(" ".join(other), 5)
        true = len(left & right) / len(left | right)
        first, second = signatures(series([" ".join(one), " ".join(other)])).to_numpy()
        errors.append(float(np.mean(np.array(first) == np.array(second))) - true)
        bounds.append((true * (1 - true) / 128) ** 0.5)
    assert all(abs(error) <= 4.5 * bound for error, bound in zip(errors, bounds, strict=True))
    assert abs(np.mean(errors)) <= 4 * np.sqrt(np.mean(np.square(bounds)) / len(errors))


@given(
    st.lists(st.none() | st.lists(st.integers(0, 1), min_size=16, max_size=16), max_size=30),
    st.sampled_from([0.75, 0.8, 0.875, 0.9, 1.0]),
    st.randoms(),
)
def test_groups_are_those_of_all_pairs(rows: list[list[int] | None], threshold: float, shuffler: random.Random) -> None:
    ids = [f"{at:03d}" for at in range(len(rows))]
    shuffler.shuffle(ids)
    found = groups(ids, rows, threshold)
    assert found == brute_groups(ids, rows, threshold)
    order = list(range(len(rows)))
    shuffler.shuffle(order)
    assert groups([ids[at] for at in order], [rows[at] for at in order], threshold) == found


def chains(count: int, length: int, seed: int) -> list[list[int] | None]:
    """Signatures in chains, each member 10 % away from the one before."""
    draw = np.random.default_rng(seed)
    rows: list[list[int] | None] = []
    for _ in range(count):
        row = draw.integers(0, 1 << 32, 128)
        for _ in range(length):
            row = np.where(draw.random(128) < 0.1, draw.integers(0, 1 << 32, 128), row)
            rows.append(row.tolist())
    return rows


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.9, 0.95])
def test_chains_are_followed_as_by_all_pairs(threshold: float) -> None:
    rows = chains(30, 12, seed=1)
    ids = [f"{at * 7919 % len(rows):04d}" for at in range(len(rows))]
    assert groups(ids, rows, threshold) == brute_groups(ids, rows, threshold)


@pytest.mark.parametrize("seed", range(20))
def test_one_band_in_common_is_enough_to_follow_a_chain(seed: int) -> None:
    # Bands are entries 0-2, 3-5, ... 12-14. All rows agree in the first; a row differs from the one that it comes
    # from once in each other band, so the pair meets in that bucket alone.
    draw = np.random.default_rng(seed)
    rows = [draw.integers(0, 1 << 32, 16)]
    while len(rows) < 32:
        row = rows[draw.integers(len(rows))].copy()
        row[draw.integers(0, 3, 4) + np.array([3, 6, 9, 12])] = draw.integers(0, 1 << 32, 4)
        rows.append(row)
    assert [band.stop for band in _bands(0.75, 16)] == [3, 6, 9, 12, 15]
    ids = [f"{at:02d}" for at in draw.permutation(32)]
    found = [row.tolist() for row in rows]
    assert groups(ids, found, 0.75) == brute_groups(ids, found, 0.75) == dict.fromkeys(sorted(ids), "00")


def test_below_the_sure_thresholds_nearly_every_pair_is_found() -> None:
    draw = np.random.default_rng(0)
    rows: list[list[int] | None] = []
    for _ in range(1000):
        row = draw.integers(0, 1 << 32, 128)
        other = draw.integers(0, 1 << 32, 128)
        other[draw.permutation(128)[:64]] = 0
        other = np.where(other == 0, row, other)
        rows += [row.tolist(), other.tolist()]
    ids = [f"{at:04d}" for at in range(len(rows))]
    found = groups(ids, rows, 0.5)
    assert sum(name != representative for name, representative in found.items()) >= 980


@pytest.mark.parametrize("permutations", [1, 5, 16, 128, 200])
def test_bands_catch_pairs_at_the_threshold(permutations: int) -> None:
    for threshold in np.linspace(0.01, 1, 100):
        needed = _entries_needed(threshold, permutations)
        assert needed / permutations >= threshold > (needed - 1) / permutations
        bands = _bands(threshold, permutations)
        rows = bands[0].stop
        assert all(band.stop - band.start == rows for band in bands)
        assert bands[-1].stop <= permutations < bands[-1].stop + rows
        sure = len(bands) > permutations - needed
        assert sure or (1 - (needed / permutations) ** rows) ** len(bands) <= 0.01


def test_large_buckets_of_boilerplate_are_not_compared_pair_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    matrix = draw.integers(0, 1 << 32, (3000, 128))
    matrix[:, :20] = 7
    matrix[1000:1010, :120] = matrix[0, :120]
    compared: list[int] = []
    count = np.count_nonzero

    def counted(equal: NDArray[np.bool_], axis: int) -> Any:
        compared.append(len(equal))
        return count(equal, axis=axis)

    monkeypatch.setattr(np, "count_nonzero", counted)
    ids = [f"{at:04d}" for at in range(len(matrix))]
    found = groups(ids, matrix.tolist(), 0.9)
    assert {name for name, representative in found.items() if name != representative} == set(ids[1000:1010])
    assert sum(compared) < 3000 * 16 * 14
    order = draw.permutation(len(matrix))
    assert groups([ids[at] for at in order], matrix[order].tolist(), 0.9) == found


def test_a_sample_that_stands_there_twice_is_one_and_nulls_are_alone() -> None:
    row = [1, 2, 3, 4]
    found = groups(["b", "a", "b", "c", "d"], [row, row, row, None, None], 0.8)
    assert found == {"a": "a", "b": "a", "c": "c", "d": "d"}
    assert groups([], [], 0.8) == {}
    assert groups(["x"], [None], 0.8) == {"x": "x"}


def test_arguments_that_make_no_sense() -> None:
    for threshold in (0.0, -1.0, 1.01, float("nan")):
        with pytest.raises(ValueError, match="threshold"):
            groups(["a"], [[1]], threshold)
    with pytest.raises(ValueError, match="differ in length"):
        groups(["a", "b"], [[1], [1, 2]], 0.8)


@pytest.mark.data
def test_edited_problems_are_found_and_real_ones_are_apart(real_data: Path) -> None:
    originals = [row["question"] + "\n" + row["answer"] for row in gsm8k(real_data)[:600]]
    draw = random.Random(0)
    edited = []
    for text in originals[:200]:
        found = text.split(" ")
        found[draw.randrange(len(found))] = "changed"
        edited.append(" ".join(found).upper())
    values = originals + edited
    rows = signatures(series(list(values))).to_list()
    ids = [f"{at:04d}" for at in range(len(values))]
    found_groups = groups(ids, rows, 0.7)
    assert found_groups == brute_groups(ids, rows, 0.7)
    assert sum(found_groups[ids[600 + at]] == ids[at] for at in range(200)) > 185
    assert all(found_groups[name] == name for name in ids[:600])
