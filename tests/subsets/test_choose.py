"""Choosing from a pool in DuckDB against choosing with numpy: equal rows, order, facts and digest, to the bit."""

from __future__ import annotations

import functools
import json
import re
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
from curation_assets.config.settings import Budget, Filters, Subset
from curation_assets.corpus.duplicates import Pool, resolve_duplicates
from curation_assets.methods.apportionment import largest_remainders
from curation_assets.methods.grace import GraceScore
from curation_assets.methods.selectors.balanced import Balanced
from curation_assets.methods.selectors.band import Band
from curation_assets.methods.selectors.candidates import Features, SelectorSection
from curation_assets.methods.selectors.cluster_medoids import ClusterMedoids
from curation_assets.methods.selectors.facility_location import FacilityLocation
from curation_assets.methods.selectors.k_center import KCenter
from curation_assets.methods.selectors.novel import Novel
from curation_assets.methods.selectors.per_prompt import Original, PerPrompt
from curation_assets.methods.selectors.random import Random
from curation_assets.methods.selectors.top import Top
from curation_assets.methods.selectors.weighted_draw import WeightedDraw
from curation_assets.quality.checks import QualityError
from curation_assets.subsets.budget import Prefix, Shares
from curation_assets.subsets.choose_in_duckdb import POOL_COLUMNS, choose
from curation_assets.subsets.facts import Selection
from curation_resources.storage.digests import digest
from curation_resources.storage.spill import spilling
from tests.subsets import in_memory
from tests.subsets.in_memory import InMemory

SCHEMA = {name: column.dtype for name, column in tables.SAMPLE_SCORES.columns.items() if name in POOL_COLUMNS}
NAN = float("nan")
NAMES = [digest("sample", number) for number in range(3)]
PROMPTS = [digest("prompt", number) for number in range(5)]

FACTS: dict[str, list[Any]] = {
    "prompt_id": PROMPTS,
    "source": ["old", "new", "é new"],
    "domain": ["algebra", "(none)", None],
    "generator": ["g", "h", None],
    "correct": [True, False, None],
    "verified": [True, False, None],
    "reward": [0.0, -0.0, 1.0, 2.0, None, NAN, float("inf")],
    "n_steps": list(range(9)),
    "response_tokens": [0, 1, 3, 4, 10, 70],
    "answer_norm": [0.0, 0.1, 0.7, None, NAN],
    "score": [-2.0, -1.0, 0.0, -0.0, 0.5, 0.1, 1e-300, None, NAN, float("inf"), float("-inf")],
}
SHARDS = ["b.jsonl", "a.jsonl", "é.jsonl", "B.jsonl"]


@st.composite
def arrivals(draw: st.DrawFn) -> pl.DataFrame:
    """Rows as shards have them, no two of one place; of a sample that came twice scores may differ."""
    count, drawn = draw(st.sampled_from([0, 1, 2, 5, 20, 60, 400])), Drawn(draw(st.integers(0, 2**32)))
    few = draw(st.booleans())
    rows = []
    for number in range(count):
        facts = {name: drawn.choice(values) for name, values in FACTS.items()}
        if not few:
            facts |= {"prompt_id": digest("prompt", drawn.randrange(count)), "score": drawn.gauss(0, 1)}
            facts |= {"response_tokens": drawn.randrange(300), "answer_norm": drawn.random()}
        place = {"shard": drawn.choice(SHARDS), "row": number % 7, "candidate": number // 7}
        rows.append({"sample_id": digest("sample", drawn.randrange(count * 9 // 8)), **place, **facts})
    return arrived_frame(rows)


SELECTORS = st.one_of(
    st.builds(Top, order=st.sampled_from([None, "highest", "lowest"])),
    st.builds(Band, band=st.sampled_from(["low", "middle", "high"])),
    st.builds(Random, seed=st.integers(0, 3)),
    st.builds(WeightedDraw, seed=st.integers(0, 3)),
    st.builds(Balanced, by=st.sampled_from([["source"], ["domain", "generator"]])),
    st.builds(
        PerPrompt,
        variant=st.sampled_from(
            ["closest", "farthest", "closest_1", "random_1", "subset", "full", "reward", "long_cot"]
        ),
        k=st.sampled_from([1, 2, "original"]),
        original=st.just(Original(sources=["old"], generators=["h"])),
        seed=st.integers(0, 3),
    ),
)
BUDGETS = st.one_of(
    st.builds(Budget, fraction=st.sampled_from([0.07, 0.2, 0.5, 1.0])),
    st.builds(Budget, samples=st.integers(1, 40)),
    st.builds(Budget, tokens=st.integers(1, 5000)),
)
FILTERS = st.builds(
    Filters,
    sources=st.sampled_from([None, None, ["old", "new"]]),
    exclude_generators=st.sampled_from([None, ["h"]]),
    correct=st.sampled_from([None, None, True]),
    max_tokens=st.sampled_from([None, None, 60]),
)
STANDARDISE = st.sampled_from([None, "source"])
STRATIFY = st.lists(st.sampled_from(["source", "domain", "generator", "length", "steps"]), max_size=2, unique=True)
REASONS = [None, None, None, "language", "repetitive"]
SCORE = GraceScore(name="grace", target="t", min_steps=2)


def arrived_frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={**SCHEMA, "score": pl.Float64})


def with_numpy(
    arrived: pl.DataFrame, subset: Subset, known: pl.DataFrame | None = None, prompts: list[str] | None = None
) -> InMemory:
    pool, filtered = resolve_duplicates(arrived), {}
    if known is not None:
        marked = pool.rows.join(known, on="sample_id", how="left", maintain_order="left")
        counts = marked.drop_nulls("reason").group_by("reason").len().sort("reason")
        filtered = dict(counts.iter_rows())
        pool = Pool(marked.filter(pl.col("reason").is_null()).drop("reason"), pool.duplicates)
    return in_memory.choose(pool, SCORE, subset.selector or Top(), subset, features_with(prompts), filtered)


def features_with(prompts: list[str] | None) -> Features | None:
    return None if prompts is None else Features(lambda ids: np.zeros((len(ids), 1)), None, lambda: prompts)


def with_duckdb(
    arrived: pl.DataFrame,
    subset: Subset,
    place: Path,
    known: pl.DataFrame | None = None,
    prompts: list[str] | None = None,
) -> tuple[pl.DataFrame, Selection]:
    pieces = [tables.SUBSET.empty()]
    selector: Any = subset.selector
    with spilling(place, 512) as spill:
        lazily = None if known is None else known.lazy()
        found = choose(
            spill,
            arrived.iter_slices(max(1, len(arrived) // 3)),
            SCORE,
            selector,
            subset,
            pieces.append,
            lazily,
            features_with(prompts),
        )
    return pl.concat(pieces), found


def assert_equal(held: InMemory, rows: pl.DataFrame, found: Selection) -> None:
    assert rows.to_dicts() == held.rows.to_dicts()
    assert repr(found.document()) == repr(held.facts.document())
    stored = Selection.of_document(json.loads(json.dumps(found.document(), sort_keys=True)))
    assert repr(stored.facts()) == repr(found.facts())
    assert stored.summary.sources.equals(found.summary.sources)
    assert stored.summary.points.equals(found.summary.points)


@settings(max_examples=60, deadline=None)
@given(arrivals(), SELECTORS, BUDGETS, FILTERS, STRATIFY, STANDARDISE, st.booleans(), st.booleans())
def test_both_ways_choose_the_same(
    arrived: pl.DataFrame,
    selector: Any,
    budget: Budget,
    filters: Filters,
    stratify: Any,
    standardise: Any,
    known: bool,
    held: bool,
) -> None:
    subset = Subset(
        name="s",
        score="grace",
        budget=budget,
        selector=selector,
        filters=filters,
        stratify=stratify,
        standardise=standardise,
    )
    reasons = None
    if known:
        ids = arrived["sample_id"].unique(maintain_order=True)
        cycle = [REASONS[number % len(REASONS)] for number in range(len(ids))]
        reasons = pl.DataFrame({"sample_id": ids, "reason": pl.Series(cycle, dtype=pl.String)})
    prompts = PROMPTS[:2] if held else None
    with TemporaryDirectory() as place:
        rows, found = with_duckdb(arrived, subset, Path(place), reasons, prompts)
        assert not list(Path(place).iterdir())
    assert_equal(with_numpy(arrived, subset, reasons, prompts), rows, found)


@functools.cache
def many(count: int) -> pl.DataFrame:
    """A pool that comes in several pieces, with ties, duplicates and gaps."""
    draw = np.random.default_rng(7)
    numbers = draw.integers(0, count * 9 // 10, count)
    ids = pl.Series("sample_id", [digest("many", number) for number in range(count * 9 // 10)])
    prompts = pl.Series("prompt_id", [digest("prompt", number) for number in range(count // 3)])
    return pl.DataFrame(
        {
            "sample_id": ids.gather(numbers),
            "prompt_id": prompts.gather(numbers % len(prompts)),
            "shard": pl.Series([f"{number:02d}.jsonl" for number in range(10)]).gather(np.arange(count) % 10),
            "row": np.arange(count),
            "source": pl.Series(["a", "b", "c"]).gather(draw.integers(0, 3, count)),
            "n_steps": draw.integers(0, 12, count, dtype=np.int32),
            "response_tokens": draw.integers(1, 900, count, dtype=np.int32),
            "answer_norm": draw.random(count).round(4).astype(np.float32),
            "score": np.where(draw.random(count) < 0.05, np.nan, draw.normal(size=count).round(3)),
        }
    ).select(
        **{name: pl.col(name) for name in ("sample_id", "prompt_id", "shard", "row")},
        candidate=pl.lit(0, dtype=pl.Int32),
        source="source",
        **{name: pl.lit(None, dtype=SCHEMA[name]) for name in ("domain", "generator", "correct", "verified", "reward")},
        **{name: pl.col(name) for name in ("n_steps", "response_tokens", "answer_norm", "score")},
    )


@pytest.mark.parametrize(
    ("selector", "budget", "stratify", "standardise"),
    [
        (Top(), Budget(fraction=0.9), [], None),
        (Top(), Budget(fraction=0.4), [], "source"),
        (Top(), Budget(tokens=60_000_000), ["source", "length"], None),
        (Band(), Budget(fraction=0.8), ["steps"], None),
        (Band(), Budget(tokens=90_000_000), [], None),
        (Random(seed=3), Budget(fraction=0.5), ["source"], None),
        (PerPrompt(k=2), Budget(fraction=0.6), ["length"], "source"),
    ],
)
def test_both_ways_agree_over_many_pieces(
    tmp_path: Path, selector: Any, budget: Budget, stratify: Any, standardise: Any
) -> None:
    arrived = many(320_000)
    subset = Subset(
        name="s", score="grace", budget=budget, selector=selector, stratify=stratify, standardise=standardise
    )
    rows, found = with_duckdb(arrived, subset, tmp_path)
    assert found.summary.eligible > 122_880  # what DuckDB gives at a time
    assert_equal(with_numpy(arrived, subset), rows, found)


ORDERING = [
    KCenter(seed=2),
    FacilityLocation(),
    Novel(tau=0.7),
    ClusterMedoids(clusters=5),
    Balanced(by=["domain", "source"]),
    WeightedDraw(seed=1),
]


@pytest.mark.parametrize("selector", ORDERING, ids=lambda selector: selector.kind)
@pytest.mark.parametrize("budget", [Budget(fraction=0.3), Budget(tokens=900)], ids=["fraction", "tokens"])
@pytest.mark.parametrize(("stratify", "standardise"), [([], None), (["source", "length"], None), ([], "source")])
def test_a_selector_with_an_order_of_its_own_gets_all_candidates(
    tmp_path: Path, selector: SelectorSection, budget: Budget, stratify: Any, standardise: Any
) -> None:
    arrived = many(400)
    subset = Subset(
        name="s",
        score="grace",
        budget=budget,
        selector=selector,
        stratify=stratify,
        standardise=standardise,
    )
    width = np.random.default_rng(0).normal(size=(32, 8))

    def vectors(ids: pl.Series) -> np.ndarray:
        return np.array([[int(digit, 16) for digit in sample] for sample in ids], dtype=np.float64) @ width

    features = Features(vectors)
    held = in_memory.choose(resolve_duplicates(arrived), SCORE, selector, subset, features)
    pieces: list[pl.DataFrame] = []
    with spilling(tmp_path, 512) as spill:
        found = choose(spill, [arrived], SCORE, selector, subset, pieces.append, None, features)
    assert_equal(held, pl.concat(pieces), found)


def of_two_levels(count: int) -> pl.DataFrame:
    """A pool whose scores depend on the source: those of `high` are ten above those of `low`."""
    drawn = Drawn(5)
    rows = [
        {
            "sample_id": digest("sample", number),
            "prompt_id": digest("prompt", number),
            "shard": "a.jsonl",
            "row": number,
            "candidate": 0,
            "source": ("low", "high")[number % 2],
            "n_steps": 3,
            "score": drawn.gauss(10.0 * (number % 2), 1.0),
        }
        for number in range(count)
    ]
    alone = {**rows[0], "sample_id": digest("alone", 0), "source": "alone", "row": count, "score": 99.0}
    return arrived_frame([*rows, alone])


def test_standardised_scores_are_compared_within_their_source(tmp_path: Path) -> None:
    arrived = of_two_levels(200)
    plain = Subset(name="s", score="grace", budget=Budget(samples=40), selector=Top())
    within = plain.model_copy(update={"standardise": "source"})
    rows, found = with_duckdb(arrived, plain, tmp_path)
    assert dict(found.summary.sources.select("source", "selected").iter_rows()) == {"alone": 1, "high": 39, "low": 0}
    assert "standardised_sources" not in found.facts()
    rows, found = with_duckdb(arrived, within, tmp_path)
    selected = dict(found.summary.sources.select("source", "selected").iter_rows())
    # A source of one sample does not vary: its z is 0, however high its score.
    assert selected["alone"] == 0
    assert min(selected["high"], selected["low"]) >= 10
    facts = found.facts()
    assert (facts["standardised_sources"], facts["sources_without_deviation"]) == (3, 1)
    # The summary is of the scores as they are: the advice that led here stays visible.
    assert (facts["variance_by_source"] or 0.0) > 0.9
    known = dict(arrived.select("sample_id", "score").iter_rows())
    assert rows["score"].to_list() == [known[sample] for sample in rows["sample_id"]]
    for reason, score in rows.select("reason", "score").iter_rows():
        assert re.fullmatch(rf"rank \d+ by grace = {round(score, 4)} \(z = -?\d+\.\d+ within its source\)", reason)
    shown = [float(reason.split("z = ")[1].split(" ")[0]) for reason in rows["reason"]]
    assert shown == sorted(shown, reverse=True)
    assert shown[0] > 2.0


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False))
def test_standardised_subsets_do_not_depend_on_the_order_of_rows(shuffle: Drawn) -> None:
    arrived = of_two_levels(120)
    subset = Subset(name="s", score="grace", budget=Budget(fraction=0.5), selector=Top(), standardise="source")
    order = list(range(len(arrived)))
    shuffle.shuffle(order)
    with TemporaryDirectory() as place:
        first = with_duckdb(arrived, subset, Path(place))
        again = with_duckdb(arrived[order], subset, Path(place))
    assert again[0].equals(first[0])
    assert repr(again[1].document()) == repr(first[1].document())


@pytest.mark.parametrize("budget", [Budget(samples=10**20), Budget(tokens=10**45)])
def test_a_budget_beyond_all_numbers_takes_everything(tmp_path: Path, budget: Budget) -> None:
    arrived = many(40)
    subset = Subset(name="s", score="grace", budget=budget, selector=Top())
    rows, found = with_duckdb(arrived, subset, tmp_path)
    assert found.whole
    assert_equal(with_numpy(arrived, subset), rows, found)


def test_a_sample_that_was_not_held_against_the_filters_is_told(tmp_path: Path) -> None:
    known = pl.DataFrame({"sample_id": NAMES[:1], "reason": pl.Series([None], dtype=pl.String)})
    facts = {"shard": "a.jsonl", "prompt_id": PROMPTS[0], "n_steps": 3, "source": "old", "score": 1.0}
    arrived = arrived_frame([{"sample_id": name, **facts} for name in NAMES])
    subset = Subset(name="s", score="grace", budget=Budget(samples=1), selector=Top())
    with pytest.raises(QualityError, match=r"^2 samples have not been checked by the filters of the corpus"):
        with_duckdb(arrived, subset, tmp_path, known)


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=6), max_size=5),
    st.integers(0, 40),
)
def test_budgets_are_filled_the_same_however_an_order_comes(pieces: list[list[tuple[int, int]]], limit: int) -> None:
    order = [row for piece in pieces for row in piece]
    sizes = [sum(weight for weight, own in order if own == number) + number for number in range(4)]
    shares, prefix = Shares(limit, sizes), Prefix(limit)
    found: list[tuple[bool, bool]] = []
    for piece in pieces:
        weights, stratum = (np.array([row[place] for row in piece], dtype=np.int64) for place in range(2))
        found += zip(shares.take(weights, stratum).tolist(), prefix.take(weights).tolist(), strict=True)
    quotas, seen, whole, used = largest_remainders(limit, sizes), [0] * 4, 0, 0
    for (weight, own), taken in zip(order, found, strict=True):
        seen[own] += weight
        whole += weight
        assert taken == (seen[own] <= quotas[own], whole <= limit)
        used += weight * taken[0]
    assert shares.room() == limit - used
