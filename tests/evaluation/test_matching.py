"""What counts as right, and intervals over seeds."""

from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest

from curation_assets.evaluation.concordance import student_t
from curation_assets.evaluation.runs import STABILITY
from curation_assets.evaluation.summary import NOTHING_DRAWN, ONE_RUN, interval, summarise
from curation_assets.steps.correctness import judged
from curation_assets.tables.evaluation import POST_TRAINING_RUNS, RELATIVE_AVERAGE


@pytest.mark.parametrize(
    ("text", "reference", "answer"),
    [
        ("Step 1: so.\nAnswer: 1,000", "1000", "1,000"),
        ("so\n#### 1000", "1,000", "1000"),
        ("It is \\boxed{1000}.", "1,000", "1000"),
        ("Answer: \\boxed{1,000}.", "1000", "1,000"),
        ("Final Answer: $5.", "5", "$5."),
        ("Answer: $\\boxed{5}$.", "$5", "5"),
        ("**Answer:** 12 apples", "12", "12 apples"),
        ("Answer: 0.50", "1/2", "0.50"),
        ("Answer: Anna.", "anna", "Anna."),
        ("Answer: (B) 12", "b", "(B) 12"),
        ("Answer: 3, 5, 8", "3,5,8", "3, 5, 8"),
        ("<think>Answer: 4</think>\nAnswer: 5", "5", "5"),
        ("Answer: 4\nNo.\nAnswer: 5", "5", "5"),
        ("Answer: -7", "-7.0", "-7"),
    ],
)
def test_right(text: str, reference: str, answer: str) -> None:
    assert judged(text, reference) == (answer, True)


@pytest.mark.parametrize(
    ("text", "reference", "answer"),
    [
        ("Answer: 1000", "100", "1000"),
        ("Answer: 5", "-5", "5"),
        ("Answer: 4", "5", "4"),
        ("The number 5 is a fine one", "5", None),
        ("", "5", None),
        ("Answer:", "5", None),
        ("Answer: Anna and Ben", "Anna", "Anna and Ben"),
        ("\\boxed{5", "5", None),
        ("Answer: 5 or 6", "5", "5 or 6"),
    ],
)
def test_wrong(text: str, reference: str, answer: str | None) -> None:
    assert judged(text, reference) == (answer, False)


# Intervals


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 29, 100, 501])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_quantiles_are_those_of_students_distribution(freedom: int, confidence: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert student_t(confidence, freedom) == pytest.approx(stats.t.ppf((1 + confidence) / 2, freedom), rel=1e-9)


def test_the_interval_by_hand() -> None:
    values = [40.0, 44.0, 45.0]
    mean = sum(values) / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
    half = 4.302652729749464 * deviation / math.sqrt(3)  # the tables' t of 0.975 and two degrees of freedom
    found = interval(values)
    assert found == pytest.approx((mean, mean - half, mean + half, None))


def test_one_value_has_no_interval() -> None:
    assert interval([3.0]) == (3.0, None, None, ONE_RUN)


def test_equal_values_have_one_of_no_width() -> None:
    assert interval([3.0, 3.0, 3.0]) == (3.0, 3.0, 3.0, None)


# Summing up


def runs(**shares: dict[int | None, tuple[float, ...]]) -> pl.DataFrame:
    """A table of runs: by arm and seed, exact match on the benchmarks a, b, ..."""
    kinds = {"full_pool": "full", "untouched_base": "base"}
    rows: list[dict[str, Any]] = []
    for arm, by_seed in shares.items():
        for seed, found in by_seed.items():
            for name, share in zip("abc", found, strict=False):
                facts: dict[str, Any] = {"model": "m", "arm": arm.replace("_", " "), "kind": kinds.get(arm, "subset")}
                counts = {"items": 100, "right": round(100 * share), "answered": 100, "finished": 100, "samples": 7}
                trained = {
                    "tokens": 10,
                    "steps": 1,
                    "loss": None,
                    **dict.fromkeys(STABILITY),
                    "run": f"{arm}{seed}",
                    "selected_by": None,
                }
                rows.append(facts | counts | trained | {"seed": seed, "benchmark": name, "exact_match": share})
    return POST_TRAINING_RUNS.conform(pl.DataFrame(rows, schema=POST_TRAINING_RUNS.schema))


def row(frame: pl.DataFrame, arm: str, benchmark: str) -> dict[str, Any]:
    return frame.row(by_predicate=(pl.col("arm") == arm) & (pl.col("benchmark") == benchmark), named=True)


def test_the_relative_average_is_that_of_the_paper() -> None:
    frame = summarise(
        runs(
            untouched_base={None: (0.1, 0.3)},
            full_pool={0: (0.4, 0.5), 1: (0.6, 0.7)},
            best={0: (0.5, 0.9), 1: (0.6, 0.6)},
        )
    )
    # m_full is 0.5 and 0.6: by seed the mean over benchmarks of 100 m / m_full.
    by_seed = [(100 * 0.5 / 0.5 + 100 * 0.9 / 0.6) / 2, (100 * 0.6 / 0.5 + 100 * 0.6 / 0.6) / 2]
    found, expected = row(frame, "best", RELATIVE_AVERAGE), interval(by_seed)
    assert (found["mean"], found["low"], found["high"]) == pytest.approx(expected[:3])
    assert row(frame, "full pool", RELATIVE_AVERAGE)["mean"] == pytest.approx(100.0)
    assert row(frame, "best", "a")["mean"] == pytest.approx(55.0)
    assert row(frame, "best", "a")["tokens"] == 20
    base = row(frame, "untouched base", RELATIVE_AVERAGE)
    assert base["mean"] == pytest.approx((20 + 50) / 2)
    assert (base["low"], base["high"], base["reason"]) == (None, None, NOTHING_DRAWN)


def test_a_benchmark_of_which_the_full_pool_gets_nothing_gives_a_reason() -> None:
    frame = summarise(runs(full_pool={0: (0.4, 0.0), 1: (0.6, 0.0)}, best={0: (0.5, 0.2), 1: (0.5, 0.0)}))
    for arm in ("full pool", "best"):
        found = row(frame, arm, RELATIVE_AVERAGE)
        assert (found["mean"], found["low"], found["high"]) == (None, None, None)
        assert found["reason"] == "the full pool has no correct answer on b, so 100 m / m_full is undefined"
    assert row(frame, "best", "b")["mean"] == pytest.approx(10.0)


def test_one_seed_has_means_without_intervals() -> None:
    frame = summarise(runs(full_pool={3: (0.4,)}, best={3: (0.5,)}))
    found = row(frame, "best", RELATIVE_AVERAGE)
    assert (found["mean"], found["low"], found["reason"]) == (pytest.approx(125.0), None, ONE_RUN)
