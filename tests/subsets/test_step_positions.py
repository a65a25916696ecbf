"""Moments of step scores by position against plain loops, to the bit in any order and any pieces."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from random import Random
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation_assets.subsets.moments import Moments, moments_by_group
from curation_assets.subsets.step_positions import LEAST_STEPS, StepPositions, pooled, positions_of
from curation_resources.storage.digests import digest

SCHEMA = {"sample_id": pl.String, "step_index": pl.Int32, "step_score": pl.Float64}
Step = tuple[str, int, float | None]


def plain_pooled(counts: list[tuple[int, int]], least: int) -> list[int]:
    """Merge neighbours until all groups are large enough, from the first position on."""
    groups: list[list[tuple[int, int]]] = []
    for one in counts:
        if groups and sum(count for _, count in groups[-1]) < least:
            groups[-1].append(one)
        else:
            groups.append([one])
    if len(groups) > 1 and sum(count for _, count in groups[-1]) < least:
        last = groups.pop()
        groups[-1] += last
    return [group[0][0] for group in groups]


@given(st.dictionaries(st.integers(1, 40), st.integers(1, 12)), st.integers(1, 30))
def test_positions_with_few_steps_are_pooled(counts: dict[int, int], least: int) -> None:
    ordered = sorted(counts.items())
    first = pooled(ordered, least)
    assert first == plain_pooled(ordered, least)
    ends = [*first[1:], *([10**9] if first else [])]
    sizes = [sum(n for at, n in ordered if a <= at < b) for a, b in zip(first, ends, strict=True)]
    assert len(sizes) <= 1 or min(sizes) >= least


def steps_of(seed: int, samples: int) -> list[Step]:
    draw = Random(seed)
    values: list[float | None] = [None, float("nan"), 0.1, 1e-3, -0.25]
    return [
        (digest("sample", sample), step, draw.choice(values) if draw.random() < 0.2 else draw.gauss(step / 10, 0.3))
        for sample in range(samples)
        for step in range(1, draw.randrange(2, 12))
    ]


def frame_of(steps: list[Step]) -> pl.DataFrame:
    return pl.DataFrame(steps, schema=SCHEMA, orient="row")


def found_in(steps: list[Step], pieces: int = 1, filtered: list[str] | None = None) -> StepPositions | None:
    frame = frame_of(steps)
    without = None if filtered is None else pl.LazyFrame({"sample_id": filtered}, schema={"sample_id": pl.String})
    return positions_of(frame.iter_slices(max(1, len(frame) // pieces)), without, 512)


def plain_moments(scores: list[float]) -> tuple[int, float, float]:
    mean = float(sum(map(Fraction, scores)) / len(scores))
    squares = sum(Fraction((score - mean) * (score - mean)) for score in scores)
    return len(scores), mean, math.sqrt(float(squares) / max(1, len(scores) - 1))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 3, 30, 90]), st.randoms(use_true_random=False))
def test_moments_are_those_of_a_loop_in_any_order(seed: int, samples: int, shuffle: Random) -> None:
    steps = steps_of(seed, samples)
    filtered = sorted({sample for sample, _, _ in steps})[::7]
    own: dict[int, list[float]] = {}
    for sample, step, score in steps:
        if score is not None and math.isfinite(score) and sample not in filtered:
            own.setdefault(step, []).append(score)
    found = found_in(steps, filtered=filtered)
    if not own:
        assert found is None
        return
    assert found is not None
    first = plain_pooled([(step, len(own[step])) for step in sorted(own)], LEAST_STEPS)
    assert list(found.first) == first
    for start, end, moments in zip(first, [*first[1:], 10**9], found.moments, strict=True):
        scores = [score for step, all_ in own.items() if start <= step < end for score in all_]
        assert tuple(moments) == plain_moments(scores)
    # Duplicates in other shards, another order, other pieces: equal to the bit.
    again = steps + steps[: len(steps) // 2]
    shuffle.shuffle(again)
    assert found_in(again, 4, filtered) == found


def test_z_is_the_distance_from_the_mean_of_the_position() -> None:
    found = StepPositions([1, 2, 5], [Moments(30, 0.0, 0.5), Moments(30, 1.0, 2.0), Moments(30, 3.0, 0.0)])
    assert [found.z(index, 2.0) for index in (1, 2, 4, 5, 99)] == [4.0, 0.5, 0.5, 0.0, 0.0]
    scores = frame_of([("a", 1, 1.0), ("a", 2, None), ("a", 3, 0.0)])
    assert found.of_steps(scores) == {1: 2.0, 3: -0.5}


def test_moments_are_stored_as_json() -> None:
    found = found_in(steps_of(3, 90))
    assert found is not None
    assert len(found.first) > 5
    assert StepPositions.of_document(json.loads(json.dumps(found.document()))) == found
    nothing: list[Any] = [None, []]
    assert [StepPositions.of_document(one) for one in nothing] == [None, None]


def test_scores_that_overflow_have_no_positions() -> None:
    assert found_in([(digest("sample", n), 1, 1.7e308 * (-1) ** n) for n in range(4)]) is None


@pytest.mark.parametrize("values", [[0.1] * 7, [3.0]])
def test_what_does_not_vary_has_no_deviation(values: list[float]) -> None:
    rows = pl.DataFrame({"group": [None] * len(values), "value": values}, schema={"group": pl.Int32, "value": float})
    (moments,) = moments_by_group(lambda: [rows]).values()
    assert moments == Moments(len(values), values[0], 0.0)
    assert moments.z(9.0) == 0.0
