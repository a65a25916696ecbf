"""Thresholds, combined scores and chains in DuckDB against plain loops: equal rows, order, facts and digest."""

from __future__ import annotations

from pathlib import Path
from random import Random as Drawn
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation_assets import tables
from curation_assets.config.settings import Budget, Filters, Subset, Threshold
from curation_assets.corpus.duplicates import Pool, resolve_duplicates
from curation_assets.methods.combined import Combination, Combined
from curation_assets.methods.method import ScoreSection
from curation_assets.methods.selectors.candidates import Features
from curation_assets.methods.selectors.novel import Novel
from curation_assets.methods.selectors.per_prompt import PerPrompt
from curation_assets.methods.selectors.top import Top
from curation_assets.subsets.choose_in_duckdb import Beside, choose
from curation_assets.subsets.facts import Selection, emptied
from curation_assets.subsets.thresholds import CombinationError, Stage
from curation_resources.storage.spill import spilling
from tests.subsets import in_memory
from tests.subsets.test_choose import SCORE, arrivals, arrived_frame, assert_equal

COLUMNS = {"first": "value_0", "second": "value_1"}
"""`first` arrives with the rows; `second` is of another target, and positive."""

NAMES = st.sampled_from(["grace", "first", "second"])
SHARES = st.sampled_from([0.07, 0.3, 0.5, 1.0])
WITHIN = st.sampled_from(["pool", "source", "domain", "prompt"])
COMBINATIONS = st.one_of(
    st.builds(
        Combination,
        combine=st.sampled_from([{"first": 1.0}, {"first": 1.0, "second": 2.0}, {"second": -0.5, "first": 0.3}]),
        by=st.sampled_from(["rank", "zscore"]),
        within=st.sampled_from(["pool", "source"]),
    ),
    st.builds(Combination, combine=st.just({"first": 0.1, "second": -2.0}), by=st.just("value")),
    st.builds(Combination, combine=st.sampled_from([{"second": 1.0}, {"second": 0.5}]), by=st.just("product")),
)


@st.composite
def thresholds(draw: st.DrawFn) -> Threshold:
    score = draw(st.one_of(NAMES, COMBINATIONS))
    kind = draw(st.sampled_from(["bounds", "top", "bottom"]))
    if kind != "bounds":
        section = {"score": score, "within": draw(WITHIN), kind: draw(SHARES)}
        return Threshold.model_validate(section)
    return Threshold(score=score, at_least=draw(st.sampled_from([None, -0.5, 0.1])), at_most=0.5)


def with_values(arrived: pl.DataFrame, drawn: Drawn) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows with `value_0`, and the table of another target with `value_1`, which not every sample has."""
    first = [
        drawn.choice([-1.0, -0.0, 0.0, 0.25, 0.5, None, float("nan"), drawn.gauss(0, 1)]) for _ in range(len(arrived))
    ]
    by_sample = dict(zip(arrived["sample_id"], first, strict=True))
    values = [by_sample[sample] for sample in arrived["sample_id"]]
    ids = arrived["sample_id"].unique(maintain_order=True)
    second = [drawn.choice([0.5, 1.0, None, drawn.random() + 0.1]) for _ in ids]
    other = pl.DataFrame({"sample_id": ids, "value_1": pl.Series(second, dtype=pl.Float64)})
    return arrived.with_columns(value_0=pl.Series(values, dtype=pl.Float64)), other.filter(
        pl.int_range(pl.len()) % 7 != 3
    )


def section_of(subset: Subset) -> ScoreSection:
    if isinstance(subset.score, str):
        return SCORE
    return Combined(name=subset.score.title, target="t", min_steps=2, combination=subset.score)


def chosen(
    arrived: pl.DataFrame,
    other: pl.DataFrame,
    subset: Subset,
    place: Path,
    incoming: list[str] | None = None,
    explained: list[pl.DataFrame] | None = None,
) -> tuple[pl.DataFrame, Selection]:
    own = {"grace": "score"} if subset.score == "grace" else {}
    score, pieces = section_of(subset), [tables.SUBSET.empty()]
    ids = None if incoming is None else pl.LazyFrame({"sample_id": pl.Series(incoming, dtype=pl.String)})
    beside = Beside(COLUMNS | own, ["value_0"], [other.lazy()], ids, len(incoming or []))
    if isinstance(score, Combined):
        arrived = arrived.with_columns(score=pl.lit(None, dtype=pl.Float64))
    with spilling(place, 512) as spill:
        found = choose(
            *(spill, arrived.iter_slices(max(1, len(arrived) // 3)), score, subset.selector or Top(), subset),
            pieces.append,
            beside=beside,
            explain=None if explained is None else explained.append,
        )
    return pl.concat(pieces), found


def twin(
    arrived: pl.DataFrame, other: pl.DataFrame, subset: Subset, incoming: list[str] | None = None
) -> in_memory.InMemory:
    if incoming is not None:
        arrived = arrived.filter(pl.col("sample_id").is_in(incoming))
    pool = resolve_duplicates(arrived)
    rows = pool.rows.join(other, on="sample_id", how="left", maintain_order="left")
    columns = COLUMNS | {"grace": "score"}
    return in_memory.choose(
        Pool(rows, pool.duplicates), section_of(subset), subset.selector or Top(), subset, columns=columns
    )


@settings(max_examples=120, deadline=None)
@given(
    arrivals(),
    st.one_of(st.just("grace"), COMBINATIONS),
    st.lists(thresholds(), max_size=3),
    st.sampled_from([Top(), Top(order="lowest"), PerPrompt(k=1)]),
    st.sampled_from([None, "source"]),
    st.sampled_from([None, True]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_thresholds_and_combinations_choose_as_loops_do(
    arrived: pl.DataFrame,
    score: Any,
    scores: list[Threshold],
    selector: Any,
    standardise: Any,
    correct: bool | None,
    chained: bool,
    seed: int,
) -> None:
    if score != "grace":
        # A combined score does not bring the column of another one.
        scores = [one for one in scores if one.score != "grace"]
    subset = Subset(
        name="s",
        score=score,
        budget=Budget(fraction=0.4),
        selector=selector,
        standardise=standardise,
        filters=Filters(scores=scores, correct=correct),
    )
    rows, other = with_values(arrived, Drawn(seed))
    incoming = sorted(arrived["sample_id"].unique())[::2] if chained else None
    explained: list[pl.DataFrame] = []
    with TemporaryDirectory() as place:
        found = chosen(rows, other, subset, Path(place), incoming, explained)
    held = twin(rows, other, subset, incoming)
    assert_equal(held, *found)
    if explained:
        # Whoever is not eligible was dropped by a threshold, or by filters of rows.
        shown = pl.concat(explained).join(held.pool.select("sample_id", was="eligible"), on="sample_id")
        assert shown["eligible"].to_list() == shown["was"].to_list()
        assert not shown.filter("eligible")["dropped"].count()


def small(**columns: list[Any]) -> pl.DataFrame:
    count = len(next(iter(columns.values())))
    rows = [
        {
            "sample_id": f"{number:032x}",
            "prompt_id": f"{number // 2:032x}",
            "shard": "a.jsonl",
            "row": number,
            "candidate": 0,
            "source": "ab"[number % 2],
            "n_steps": 3,
            "response_tokens": 10,
            "score": 1.0,
        }
        for number in range(count)
    ]
    return arrived_frame(rows).with_columns(
        **{name: pl.Series(values, dtype=pl.Float64) for name, values in columns.items()}
    )


NOTHING = pl.DataFrame(schema={"sample_id": pl.String, "value_1": pl.Float64})


def test_each_threshold_is_applied_to_what_passed_before(tmp_path: Path) -> None:
    arrived = small(value_0=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, None, 8.0])
    half, high = Threshold(score="first", top=0.5), Threshold(score="first", at_most=5.0)

    def left(*order: Threshold) -> list[int]:
        subset = Subset(name="s", score="grace", budget=Budget(fraction=1.0), filters=Filters(scores=list(order)))
        rows, found = chosen(arrived, NOTHING, subset, tmp_path)
        assert sum(stage.no_value for stage in found.funnel) == 1
        return sorted(int(sample, 16) for sample in rows["sample_id"])

    assert left(high, half) == [2, 3, 4]
    assert left(half, high) == [3, 4]


def test_the_funnel_says_which_stage_left_nothing(tmp_path: Path) -> None:
    subset = Subset(
        name="s",
        score="grace",
        budget=Budget(fraction=1.0),
        filters=Filters(scores=[Threshold(score="first", at_least=7.0)]),
    )
    rows, found = chosen(small(value_0=[1.0, 2.0]), NOTHING, subset, tmp_path)
    assert rows.is_empty()
    assert [stage.samples for stage in found.funnel] == [2, 0, 0]
    assert emptied(found.funnel) == "first >= 7: none of 2 samples is left"
    assert emptied([Stage("s", "pool", 0, 0, 0, 0)]) == "the pool is empty"


def test_a_sample_without_one_of_the_scores_has_no_combined_score(tmp_path: Path) -> None:
    subset = Subset(name="s", score=Combination(combine={"first": 1.0, "second": 1.0}), budget=Budget(fraction=1.0))
    arrived = small(value_0=[1.0, 2.0, 3.0])
    other = pl.DataFrame({"sample_id": arrived["sample_id"][:2], "value_1": [5.0, 4.0]})
    rows, found = chosen(arrived, other, subset, tmp_path)
    # Ranks 1/2 and 1: each is best by one of them, and ties are broken by sample_id.
    assert rows["score"].to_list() == [0.75, 0.75]
    assert found.facts()["without_score"] == 1


def test_a_product_of_numbers_that_are_not_positive_is_refused(tmp_path: Path) -> None:
    combination = Combination(combine={"first": 1.0, "second": 1.0}, by="product")
    subset = Subset(name="s", score=combination, budget=Budget(fraction=1.0))
    arrived = small(value_0=[1.0, -2.0])
    other = pl.DataFrame({"sample_id": arrived["sample_id"], "value_1": [5.0, 4.0]})
    with pytest.raises(CombinationError, match=r"first \* second: first is not positive for 1 samples \(lowest: -2\)"):
        chosen(arrived, other, subset, tmp_path)


def test_a_sample_without_the_vectors_of_the_named_score_cannot_be_chosen(tmp_path: Path) -> None:
    novel = Novel(vectors="second", tau=0.5)
    subset = Subset(name="s", score="grace", budget=Budget(fraction=1.0), selector=novel)
    arrived = small(score=[3.0, 2.0, 1.0, 0.5], value_0=[0.0] * 4)
    other = pl.DataFrame({"sample_id": arrived["sample_id"][1:], "value_1": [1.0, 1.0, 1.0]})
    points = dict(zip(arrived["sample_id"], [[9.0, 9.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0]], strict=True))
    asked: list[str] = []

    def vectors(ids: pl.Series) -> np.ndarray:
        asked.extend(ids)
        return np.array([points[sample] for sample in ids])

    pieces: list[pl.DataFrame] = []
    with spilling(tmp_path, 512) as spill:
        found = choose(
            *(spill, [arrived], SCORE, novel, subset, pieces.append, None, Features(vectors)),
            beside=Beside(COLUMNS | {"grace": "score"}, ["value_0"], [other.lazy()]),
        )
    assert pl.concat(pieces)["sample_id"].to_list() == [arrived["sample_id"][1], arrived["sample_id"][3]]
    assert arrived["sample_id"][0] not in asked
    assert [(stage.name, stage.samples) for stage in found.funnel] == [("pool", 4), ("has second", 3), ("selected", 2)]
