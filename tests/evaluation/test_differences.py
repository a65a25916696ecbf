"""The paired bootstrap against a loop, and the spread between random draws."""

from __future__ import annotations

import statistics

import numpy as np
import polars as pl
import pytest

from curation_assets.evaluation import differences
from curation_assets.evaluation.arms import FULL_POOL, Run
from curation_assets.evaluation.differences import DRAWS, SEED, Floats, bootstrap, mean_of_problems, spread
from curation_assets.evaluation.rendering import WITHIN, differences_of
from curation_assets.evaluation.summary import Results
from curation_assets.tables.evaluation import POST_TRAINING_DIFFERENCES, POST_TRAINING_EVAL, POST_TRAINING_SPREAD

NAN = float("nan")


def slow_bootstrap(values: list[float], draws: int) -> tuple[float, float]:
    """Problem by problem, with the textbook's percentiles (linear between neighbours)."""
    generator = np.random.default_rng(SEED)
    means = []
    for _ in range(draws):
        total = 0.0
        for place in generator.integers(len(values), size=len(values)):
            total += values[int(place)]
        means.append(total / len(values))
    means.sort()

    def quantile(share: float) -> float:
        position = share * (draws - 1)
        below = int(position)
        above = min(below + 1, draws - 1)
        return means[below] + (position - below) * (means[above] - means[below])

    return quantile(0.025), quantile(0.975)


@pytest.mark.parametrize("count", [2, 7, 40])
def test_the_bootstrap_is_that_of_a_loop(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).normal(0.3, 1.0, count)
    expected = slow_bootstrap(values.tolist(), DRAWS)
    assert bootstrap(values) == pytest.approx(expected, abs=1e-12)
    # However few problems are drawn at once.
    monkeypatch.setattr(differences, "MOST_INDICES", 100)
    assert bootstrap(values) == pytest.approx(expected, abs=1e-12)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = bootstrap(generator.normal(1.0, 2.0, 60), draws=400)
        assert low is not None
        assert high is not None
        covered += low <= 1.0 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_one_problem_has_no_interval() -> None:
    assert bootstrap(np.array([1.0])) == (None, None)
    assert bootstrap(np.empty(0)) == (None, None)


def test_the_spread_by_hand() -> None:
    draws = [2.0, 2.5, 2.1]
    found = spread(draws)
    assert found == {
        "draws": 3,
        "mean": pytest.approx(2.2),
        "deviation": pytest.approx(statistics.stdev(draws)),
        "range": pytest.approx(0.5),
    }
    assert (spread([2.0])["deviation"], spread([2.0])["range"]) == (None, None)


def arms(**values: list[list[float]]) -> dict[str, list[tuple[Run, Floats]]]:
    """By arm the values of its runs; `random` and `best` have two samples, the full pool three."""
    sizes = {"random": 2, "best": 2, "full": 3, "base": 0}
    names = {"random": "random (2)", "full": FULL_POOL}
    made: dict[str, list[tuple[Run, Floats]]] = {}
    for name, by_seed in values.items():
        ids = tuple("abc"[: sizes[name]])
        arm = names.get(name, name)
        against = "random (2)" if len(ids) == 2 else None
        made[arm] = [
            (Run("m", arm, "subset", None, n, ids, random=against), np.array(own)) for n, own in enumerate(by_seed)
        ]
    return made


def test_differences_are_paired_and_average_over_seeds_first() -> None:
    made = arms(
        base=[[5.0, 5.0, NAN]],
        full=[[1.0, 2.0, NAN], [1.0, 4.0, NAN]],
        best=[[2.0, 3.0, NAN], [2.0, 4.0, NAN]],
        random=[[4.0, 3.0, NAN], [2.0, 1.0, NAN]],
    )
    rows = {(row["arm"], row["against"]): row for row in differences._differences(made, {"random (2)": 1.0})}
    assert list(rows) == [
        ("base", FULL_POOL),
        ("best", "random (2)"),
        ("best", FULL_POOL),
        ("random (2)", FULL_POOL),
    ]
    # By problem: (2 - 3) and (3.5 - 2).
    found = rows["best", "random (2)"]
    assert found["difference"] == pytest.approx(0.25)
    assert (found["low"], found["high"]) == pytest.approx(bootstrap(np.array([-1.0, 1.5])))
    assert (found["problems"], found["spread"], found["within_spread"]) == (2, 1.0, True)
    assert rows["base", FULL_POOL]["difference"] == pytest.approx(3.0)
    assert rows["base", FULL_POOL]["within_spread"] is None
    smaller = differences._differences(made, {"random (2)": 0.1})
    assert [row["within_spread"] for row in smaller] == [None, False, False, False]


def test_differences_within_the_spread_are_marked() -> None:
    made = arms(full=[[1.0, 2.0]], best=[[0.5, 2.0]], random=[[4.0, 3.0], [3.0, 2.0]])
    where = {"model": "m", "benchmark": "held", "metric": "loss"}
    rows = [where | row for row in differences._differences(made, {"random (2)": 1.0})]
    frame = POST_TRAINING_DIFFERENCES.conform(pl.DataFrame(rows, schema=POST_TRAINING_DIFFERENCES.schema))
    _, shown = differences_of(Results(POST_TRAINING_EVAL.empty(), POST_TRAINING_SPREAD.empty(), frame))
    remarks = {row[1:3]: (row[4], row[-1]) for row in shown}
    assert remarks["best", FULL_POOL] == ("-0.250", WITHIN)
    assert remarks["best", "random (2)"] == ("-1.750", None)


def test_a_loss_that_is_not_finite_leaves_no_difference() -> None:
    made = arms(full=[[1.0, 2.0]], best=[[1.0, NAN]])
    (found,) = differences._differences(made, {})
    assert (found["difference"], found["low"], found["problems"]) == (None, None, 0)


def test_the_mean_is_over_problems_with_a_value() -> None:
    assert mean_of_problems(np.array([1.0, NAN, 3.0])) == 2.0
    assert np.isnan(mean_of_problems(np.array([NAN])))
