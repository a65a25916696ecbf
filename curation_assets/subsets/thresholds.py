"""Conditions and combinations that compare samples with one another: what a subset does before it ranks its candidates.

Everything works on DuckDB's table `pool` (`curation_assets.subsets.choose_in_duckdb`), whose columns `value_0`,
`value_1`, ... hold the scores that are read beside the subset's own. The results do not depend on the order of rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import polars as pl

from curation_assets.config.settings import Subset, Threshold
from curation_assets.methods.combined import Combination
from curation_assets.subsets.moments import GROUP, VALUE, moments_by_group
from curation_resources.errors import UserError
from curation_resources.storage.spill import Spill

GROUPS = {"pool": "0", "source": "source", "domain": "domain", "prompt": "prompt_id"}
"""The SQL expression of the group that a share, a rank or a z-score is computed within."""

NO_VALUE, FAILED = 0, 1
"""Why a threshold drops a sample: column `dropped` is twice the threshold's number, plus this."""


class CombinationError(UserError):
    """Scores cannot be combined."""


@dataclass(frozen=True)
class Stage:
    """A stage of a selection, with what it left.

    Attributes:
        subset: the subset whose selection it belongs to.
        name: the stage, such as a threshold's title.
        samples: number of samples that are left.
        tokens: their response tokens, counted by the target of the subset's score.
        marked: those that are marked right or wrong.
        right: those that are marked right.
        no_value: for a threshold: samples that it dropped because they have no such score.
    """

    subset: str
    name: str
    samples: int
    tokens: int
    marked: int
    right: int
    no_value: int = 0

    @property
    def share_right(self) -> float | None:
        """The share of marked samples that are marked right; None without any."""
        return self.right / self.marked if self.marked else None


def count_stage(spill: Spill, subset: str, name: str, condition: str = "eligible", no_value: int = 0) -> Stage:
    """Return a stage with the counts of the rows of table `pool` that fulfil a condition."""
    counts = spill.row(
        "select count(*), coalesce(sum(response_tokens), 0)::bigint, count(marked_right), "
        f"count(*) filter (marked_right) from pool where {condition}"
    )
    samples, tokens, marked, right = counts
    return Stage(subset, name, samples, tokens, marked, right, no_value)


def replace_pool(spill: Spill, query: str) -> None:
    """Put the rows of a query in the place of table `pool`, which it may read."""
    spill.run(f"create table replacement as {query}")
    spill.run("drop table pool")
    spill.run("alter table replacement rename to pool")


def finite(column: str) -> str:
    """Return the SQL condition that a row has a finite value; false where it is null."""
    return f"coalesce(isfinite({column}), false)"


def apply_threshold(spill: Spill, number: int, threshold: Threshold, columns: Mapping[str, str]) -> int:
    """Make the rows of table `pool` that do not pass a threshold ineligible, and number it in their column `dropped`.

    Args:
        spill: the database.
        number: the threshold's number.
        threshold: the threshold.
        columns: the column of `pool` with each named score.

    Returns:
        The number of eligible rows that have no such score.
    """
    if isinstance(threshold.score, str):
        value = columns[threshold.score]
    else:
        combine(spill, threshold.score, columns, "compared")
        replace_pool(spill, "select * from pool left join compared using (sample_id)")
        spill.run("drop table compared")
        value = "combined"
    before = spill.row("select count(*) from pool where eligible")[0]
    _drop(spill, 2 * number + NO_VALUE, f"not {finite(value)}")
    left: int = spill.row("select count(*) from pool where eligible")[0]
    share = threshold.top if threshold.top is not None else threshold.bottom
    if share is None:
        bounds = [
            f"{value} {sign} {bound!r}::double"
            for sign, bound in (("<", threshold.at_least), (">", threshold.at_most))
            if bound is not None
        ]
        _drop(spill, 2 * number + FAILED, f"({' or '.join(bounds)})")
    else:
        order = f"{value} {'desc' if threshold.top is not None else 'asc'}, sample_id"
        passing = _share_of_groups(spill, order, GROUPS[threshold.within], share)
        _drop(spill, 2 * number + FAILED, f"sample_id not in ({passing})")
    if value == "combined":
        spill.run("alter table pool drop column combined")
    return int(before - left)


def _drop(spill: Spill, reason: int, condition: str) -> None:
    """Make the eligible rows of table `pool` that fulfil a condition ineligible."""
    spill.run(f"update pool set eligible = false, may = false, dropped = {reason} where eligible and {condition}")


def _share_of_groups(spill: Spill, order: str, group: str, share: float) -> str:
    """Return the query for the first ceil(share * n) eligible rows of each group of n, in an order."""
    exact = Fraction(str(share))

    def most(count: str) -> str:
        # In whole numbers, as a budget's share: 7 % of 100 is 7.
        return f"({count}::hugeint * {exact.numerator} + {exact.denominator - 1}) // {exact.denominator}"

    if group == "0":
        count = spill.row("select count(*) from pool where eligible")[0]
        limit = -(-count * exact.numerator // exact.denominator)
        return f"select sample_id from pool where eligible order by {order} limit {limit}"
    place = f"row_number() over (partition by {group} order by {order})"
    return (
        f"select sample_id from (select sample_id, {place} as place, count(*) over (partition by {group}) as size "
        f"from pool where eligible) where place <= {most('size')}"
    )


def combine(spill: Spill, combination: Combination, columns: Mapping[str, str], table: str) -> None:
    """Create a table with `sample_id` and the `combined` score of the eligible rows of table `pool` that have all.

    Args:
        spill: the database.
        combination: the scores, their weights, and how they are combined.
        columns: the column of `pool` with each named score.
        table: name of the new table.

    Raises:
        CombinationError: a product has a factor that is not positive.
    """
    weights = {columns[name]: weight for name, weight in combination.combine.items()}
    every, joins = " and ".join(["eligible", *map(finite, weights)]), ""
    if combination.by == "product":
        _refuse_factors(spill, combination, columns, every)
        value = " * ".join(f"pow({column}, {weight!r}::double)" for column, weight in weights.items())
    elif combination.by == "value":
        value = _weighted({column: column for column in weights}, weights)
    elif combination.by == "rank":
        value = _ranks(spill, combination, weights, every)
        total = math.fsum(map(abs, weights.values()))
        spill.run(f"create table {table} as select sample_id, ({value}) / {total!r}::double as combined from ranks")
        spill.run("drop table ranks")
        return
    else:
        value, joins = _zscores(spill, weights, every, GROUPS[combination.within])
    # Turn -0.0 into 0.0, as it is shown.
    spill.run(f"create table {table} as select sample_id, ({value}) + 0.0 as combined from pool {joins} where {every}")


def _weighted(terms: Mapping[str, str], weights: Mapping[str, float]) -> str:
    return " + ".join(f"{weight!r}::double * ({terms[column]})" for column, weight in weights.items())


def _refuse_factors(spill: Spill, combination: Combination, columns: Mapping[str, str], every: str) -> None:
    for name in combination.combine:
        count, lowest = spill.row(
            f"select count(*), min({columns[name]}) from pool where {every} and {columns[name]} <= 0"
        )
        if count:
            raise CombinationError(
                f"{combination.title}: {name} is not positive for {count:,} samples (lowest: {lowest:g}), so that a "
                f"product means nothing. Use by: rank, or exclude them by filters: {{scores: [{{score: {name}, "
                "at_least: ...}]}."
            )


def _ranks(spill: Spill, combination: Combination, weights: Mapping[str, float], every: str) -> str:
    """Create table `ranks` with the mean rank of each score in (0, 1], and return the expression of their sum."""
    group = GROUPS[combination.within]
    by = "" if group == "0" else f"partition by {group} "
    terms = {}
    for column in weights:
        ties = f"count(*) over (partition by {'' if group == '0' else f'{group}, '}{column})"
        size = f"count(*) over ({by})"
        rank = f"rank() over ({by}order by {column})"
        terms[column] = f"({rank} + ({ties} - 1) / 2.0::double) / {size}::double"
    columns = ", ".join(f"{term} as rank_{place}" for place, term in enumerate(terms.values()))
    spill.run(f"create table ranks as select sample_id, {columns} from pool where {every}")
    return _weighted({column: f"rank_{place}" for place, column in enumerate(weights)}, weights)


def _zscores(spill: Spill, weights: Mapping[str, float], every: str, group: str) -> tuple[str, str]:
    """Return the expression of the sum of weighted z-scores, and the joins that it needs.

    A z-score is 0 where the values of a group do not vary.
    """
    terms, joins = {}, []
    for column in weights:
        query = f'select {group} as "{GROUP}", {column} as "{VALUE}" from pool where {every}'
        found = moments_by_group(lambda query=query: spill.stream(query))  # type: ignore[misc]
        name = f"moments_of_{column}"
        rows = [(None if group == "0" else key, own.mean, own.deviation) for key, own in found.items() if own.varies]
        schema = {"own": pl.String, "mean": pl.Float64, "deviation": pl.Float64}
        spill.run(f"create or replace table {name} (own varchar, mean double, deviation double)")
        frame = pl.DataFrame(rows, schema=schema, orient="row")
        spill.load(f"insert into {name} select own, mean, deviation from frame", [frame])
        condition = "true" if group == "0" else f"{name}.own is not distinct from pool.{group}"
        joins.append(f"left join {name} on {condition}")
        terms[column] = f"coalesce(({column} - {name}.mean) / {name}.deviation, 0.0::double)"
    return _weighted(terms, weights), " ".join(joins)


def combined_rows(spill: Spill, combination: Combination, columns: Mapping[str, str]) -> None:
    """Write a combination into column `score` of table `pool`; rows that lack a part of it have none."""
    combine(spill, combination, columns, "combined_scores")
    replace_pool(
        spill,
        "select pool.* replace (combined_scores.combined as score, "
        f"pool.eligible and {finite('combined_scores.combined')} as may) "
        "from pool left join combined_scores using (sample_id)",
    )
    spill.run("drop table combined_scores")


def names_read(subset: Subset) -> list[str]:
    """Return the names of the scores that a subset reads beside its own, which is in column `score`."""
    return [name for name in subset.scores_read if name != subset.score]
