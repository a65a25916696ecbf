"""Selectors against loops over rows, written from methods.md; whatever the order of rows."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation_assets.config.settings import Subset
from curation_assets.methods.random_draws import uniform
from curation_assets.methods.selectors.band import Band
from curation_assets.methods.selectors.candidates import Candidates
from curation_assets.methods.selectors.per_prompt import Original, PerPrompt
from curation_assets.methods.selectors.random import Random
from curation_assets.methods.selectors.top import Top
from tests.subsets.in_memory import group_numbers, order_by

Row = dict[str, Any]
SCHEMA = {
    "sample_id": pl.String,
    "prompt_id": pl.String,
    "source": pl.String,
    "generator": pl.String,
    "correct": pl.Boolean,
    "verified": pl.Boolean,
    "reward": pl.Float64,
    "score": pl.Float64,
}
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "prompt_id": st.sampled_from("pqrs"),
            "source": st.sampled_from(["old", "new"]),
            "generator": st.sampled_from(["g", "h", None]),
            "correct": st.sampled_from([True, False, None]),
            "verified": st.sampled_from([True, False, None]),
            "reward": st.sampled_from([0.0, 1.0, 2.0, None]),
            "score": st.sampled_from([-2.0, -1.0, 0.0, 0.5]),
        }
    ),
    max_size=25,
)
ORIGINAL = Original(sources=["old"])


def numbered(rows: list[Row]) -> list[Row]:
    return [{"sample_id": f"{n * 7919 % 65536:013x}", **row} for n, row in enumerate(rows)]


def chosen(selector: Any, rows: list[Row], highest_first: bool = True) -> list[str]:
    shuffled = random.Random(len(rows)).sample(rows, len(rows))
    found = [in_order(selector, pl.DataFrame(order, schema=SCHEMA), highest_first)[0] for order in (rows, shuffled)]
    assert found[0] == found[1]
    for limit in (0, 1, 3):
        few, _ = in_order(selector, pl.DataFrame(shuffled, schema=SCHEMA), highest_first, limit)
        assert few[:limit] == found[0][:limit]
    return found[0]


def in_order(
    selector: Any, frame: pl.DataFrame, highest_first: bool = True, limit: int | None = None
) -> tuple[list[str], dict[str, int]]:
    """Ids in the order of choice among all rows, and what is left out."""
    score = frame["score"].to_numpy()
    choice = order_by(selector, Candidates(frame, score, np.isfinite(score), highest_first, limit))
    return frame["sample_id"].gather(choice.order).to_list(), choice.left_out


def by_score(rows: list[Row], highest: bool = True, key: str = "score") -> list[Row]:
    return sorted(rows, key=lambda row: ((-row[key] if highest else row[key]), row["sample_id"]))


def ids(rows: list[Row]) -> list[str]:
    return [row["sample_id"] for row in rows]


def slow_per_prompt(selector: PerPrompt, rows: list[Row]) -> list[str]:
    """GRAPE's variants, prompt by prompt (arXiv 2502.04194)."""
    kept: list[Row] = []
    for prompt in sorted({row["prompt_id"] for row in rows}):
        group = [row for row in rows if row["prompt_id"] == prompt]
        if len(group) < 2:
            continue
        original = [row for row in group if row["source"] == "old"]
        k = len(original) if selector.k == "original" else selector.k
        right = [row for row in group if (row["verified"] if row["correct"] is None else row["correct"])]
        draws = dict(zip(ids(group), uniform(pl.Series(ids(group)), selector.seed).to_list(), strict=True))
        of_variant: dict[str, list[Row]] = {
            "closest": by_score(group)[:k],
            "farthest": by_score(group, highest=False)[:k],
            "closest_1": by_score(original)[:1],
            "random_1": [row for row in group if draws[row["sample_id"]] == min(draws.values())],
            "subset": original,
            "full": group,
            "reward": by_score([row for row in group if row["reward"] is not None], key="reward")[:k],
            "long_cot": by_score(right)[:k],
        }
        kept += of_variant[selector.variant]
    if selector.variant == "random_1":
        return ids(sorted(kept, key=lambda row: uniform(pl.Series([row["sample_id"]]), selector.seed)[0]))
    key = "reward" if selector.variant == "reward" else "score"
    return ids(by_score(kept, highest=selector.variant != "farthest", key=key))


@settings(max_examples=150, deadline=None)
@given(
    ROWS,
    st.sampled_from(["closest", "farthest", "closest_1", "random_1", "subset", "full", "reward", "long_cot"]),
    st.sampled_from([1, 2, "original"]),
)
def test_the_best_of_each_prompt_is_that_of_a_loop(rows: list[Row], variant: Any, k: Any) -> None:
    made = numbered(rows)
    selector = PerPrompt(variant=variant, k=k, original=ORIGINAL, seed=3)
    assert chosen(selector, made) == slow_per_prompt(selector, made)


def test_a_prompt_with_one_response_is_left_out_with_a_reason() -> None:
    rows: list[Row] = [dict.fromkeys(SCHEMA) | {"prompt_id": prompt, "score": 0.0} for prompt in "aab"]
    assert in_order(PerPrompt(), _frame(rows))[1] == {"single_response": 1, "not_of_its_prompt": 1}


def _frame(rows: list[Row]) -> pl.DataFrame:
    return pl.DataFrame([row | {"sample_id": f"{n:013x}"} for n, row in enumerate(rows)], schema=SCHEMA)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.booleans())
def test_bands_and_top_are_slices_of_the_ranking(rows: list[Row], highest_first: bool) -> None:
    made = numbered(rows)
    descending = ids(by_score(made))
    assert chosen(Top(), made, highest_first) == ids(by_score(made, highest_first))
    assert chosen(Top(order="lowest"), made, highest_first) == ids(by_score(made, highest=False))
    assert chosen(Band(band="high"), made, highest_first) == descending
    assert chosen(Band(band="low"), made, highest_first) == ids(by_score(made, highest=False))
    begin = 33 * len(made) // 100
    assert chosen(Band(), made, highest_first) == descending[begin:] + descending[:begin][::-1]


def test_samples_without_a_score_do_not_move_the_band() -> None:
    rows = numbered([{"score": float(n), "prompt_id": "p"} for n in range(10)])
    frame = pl.DataFrame(rows, schema=SCHEMA)
    score = frame["score"].to_numpy()
    for eligible, begin in ((10, 3), (20, 6), (40, 10)):
        choice = order_by(Band(), Candidates(frame, score, np.isfinite(score)), eligible)
        assert choice.order.tolist()[: 10 - begin] == list(range(9 - begin, -1, -1))


def test_random_is_a_shuffle_that_only_the_seed_and_the_ids_decide() -> None:
    rows = numbered([{"score": 0.0, "prompt_id": "p"} for _ in range(200)])
    first = chosen(Random(seed=1), rows)
    assert sorted(first) == sorted(ids(rows)) != first
    assert chosen(Random(seed=2), rows) != first
    assert [sample for sample in first if sample in set(ids(rows[:50]))] == chosen(Random(seed=1), rows[:50])


def test_draws_are_uniform() -> None:
    sample_ids = pl.Series([f"{n:013x}{0:019x}" for n in range(20_000)])
    for seed in (0, 1):
        drawn = uniform(sample_ids, seed)
        assert drawn.is_between(0, 1, closed="left").all()
        assert abs(drawn.mean() - 0.5) < 0.01  # type: ignore[operator]
        assert drawn.n_unique() > 19_990


@pytest.mark.parametrize("fields", [{"variant": "subset"}, {"variant": "closest_1"}, {"k": "original"}])
def test_variants_of_the_original_pool_ask_what_it_was(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Add original"):
        PerPrompt(**fields)


def test_a_kind_alone_stands_for_the_selector() -> None:
    made = Subset.model_validate({"name": "s", "score": "g", "budget": {"samples": 1}, "selector": "band"})
    assert made.selector == Band()


@given(st.lists(st.text(max_size=3)))
def test_equal_texts_have_equal_numbers(texts: list[str]) -> None:
    numbers = group_numbers(pl.Series(texts, dtype=pl.String)).tolist()
    assert len(set(zip(texts, numbers, strict=True))) == len(set(texts)) == len(set(numbers))
    assert not numbers or max(numbers) == len(set(texts)) - 1


def test_texts_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pl.Series.hash
    monkeypatch.setattr(pl.Series, "hash", lambda self, seed: real(self, seed) % 2 if seed == 0 else real(self, seed))
    texts = [str(n % 20) for n in range(100)]
    numbers = group_numbers(pl.Series(texts)).tolist()
    assert len(set(zip(texts, numbers, strict=True))) == len(set(numbers)) == 20
