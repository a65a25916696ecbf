"""How each kind of selector chooses: from the eligible pool to an order of choice, best first.

An order is the whole of what a selector would take, so that any budget is a prefix of it. All of them are
deterministic, break ties by sample_id, and do not depend on the order of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import polars as pl

from curation_assets.draws import uniform
from curation_assets.subsets.selector import Band, PerPrompt, Random, Top

MIDDLE_BEGINS = Fraction("0.33")
"""Share of the descending order that the middle band leaves out (LESS-style perplexity baselines)."""


@dataclass(frozen=True)
class Choice:
    """An order of choice.

    Attributes:
        rows: samples of the pool, best first.
        left_out: eligible samples that the selector does not take whatever the budget, by reason.
    """

    rows: pl.DataFrame
    left_out: dict[str, int] = field(default_factory=dict)


def order_by(selector: Any, pool: pl.DataFrame, highest_first: bool) -> Choice:
    """The order in which a selector takes samples.

    Args:
        selector: its parameters (`curation_assets.subsets.selector`).
        pool: eligible samples with a finite score in column `score`.
        highest_first: whether the method's best samples have the highest scores.
    """
    return _SELECTORS[type(selector)](selector, pool, highest_first)


def ranked(pool: pl.DataFrame, highest_first: bool = True) -> pl.DataFrame:
    """Samples by score; ties are broken by sample_id."""
    return pool.sort(["score", "sample_id"], descending=[highest_first, False])


def _top(selector: Top, pool: pl.DataFrame, highest_first: bool) -> Choice:
    return Choice(ranked(pool, highest_first if selector.order is None else selector.order == "highest"))


def _band(selector: Band, pool: pl.DataFrame, _highest_first: bool) -> Choice:
    if selector.band == "low":
        return Choice(ranked(pool, highest_first=False))
    descending = ranked(pool)
    if selector.band == "high":
        return Choice(descending)
    begin = int(MIDDLE_BEGINS * len(descending))
    # A budget that reaches beyond the end goes on where the band began, upwards.
    return Choice(pl.concat([descending.slice(begin), descending.head(begin).reverse()]))


def _random(selector: Random, pool: pl.DataFrame, _highest_first: bool) -> Choice:
    drawn = pool.with_columns(_draw=uniform(pool["sample_id"], selector.seed))
    return Choice(drawn.sort("_draw", "sample_id").drop("_draw"))


def _per_prompt(selector: PerPrompt, pool: pl.DataFrame, _highest_first: bool) -> Choice:
    alone = pool.group_by("prompt_id").len().filter(pl.col("len") < 2)
    groups = pool.join(alone, on="prompt_id", how="anti")
    left_out = {"single_response": len(pool) - len(groups)}
    if selector.original is not None:
        groups = groups.with_columns(_original=_is_original(selector))
    chosen = _within_groups(selector, groups)
    if selector.variant != "full":
        left_out["not_of_its_prompt"] = len(groups) - len(chosen)
    # Farthest takes the lowest first, as it does within each prompt.
    order = ranked(chosen, selector.variant != "farthest")
    return Choice(order.select(pool.columns), {reason: count for reason, count in left_out.items() if count})


def _within_groups(selector: PerPrompt, groups: pl.DataFrame) -> pl.DataFrame:
    """The responses that a variant takes of each prompt group."""
    variant = selector.variant
    if variant == "full":
        return groups
    if variant == "subset":
        return groups.filter("_original")
    counts = groups.group_by("prompt_id").agg(_most=_most(selector))
    if variant == "closest_1":
        groups = groups.filter("_original")
    elif variant == "long_cot":
        groups = groups.filter(pl.coalesce("correct", "verified").fill_null(value=False))
    elif variant == "reward":
        groups = groups.filter(pl.col("reward").is_not_null() & pl.col("reward").is_finite())
    if variant == "random_1":
        groups = groups.with_columns(_key=-uniform(groups["sample_id"], selector.seed))
    else:
        groups = groups.with_columns(_key="reward" if variant == "reward" else "score")
    if variant in ("closest_1", "random_1") or selector.k == 1:
        return _best_of_groups(groups, highest=variant != "farthest")
    order = groups.sort(["_key", "sample_id"], descending=[variant != "farthest", False])
    place = pl.int_range(pl.len()).over("prompt_id")
    return order.with_columns(_place=place).join(counts, on="prompt_id").filter(pl.col("_place") < pl.col("_most"))


def _best_of_groups(groups: pl.DataFrame, highest: bool) -> pl.DataFrame:
    """The row of each prompt group with the highest (or lowest) key; ties by sample_id."""
    best = pl.col("_key").max() if highest else pl.col("_key").min()
    extremes = groups.group_by("prompt_id").agg(_key=best)
    found = groups.join(extremes, on=["prompt_id", "_key"], how="semi")
    # Only ties are left to be told apart, and there are few.
    if found["prompt_id"].n_unique() == len(found):
        return found
    return found.sort("sample_id").unique("prompt_id", keep="first")


def _is_original(selector: PerPrompt) -> pl.Expr:
    assert selector.original is not None
    return pl.col("source").is_in(selector.original.sources) | pl.col("generator").is_in(
        selector.original.generators
    ).fill_null(value=False)


def _most(selector: PerPrompt) -> pl.Expr:
    """How many responses of a prompt are taken: k, or as many as it had originally."""
    return pl.col("_original").sum() if selector.k == "original" else pl.lit(selector.k)


_SELECTORS: dict[type, Callable[[Any, pl.DataFrame, bool], Choice]] = {
    Top: _top,
    Band: _band,
    Random: _random,
    PerPrompt: _per_prompt,
}
