"""Choosing from a pool that need not fit into memory: the same rows, order and facts as in memory, to the bit.

Ranking is a sort on disk, and the best of each prompt a window over it. A budget is filled as the order goes by, and
the rows of the subset go out in pieces. In memory are such a piece, and what DuckDB may hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curation_assets.config.settings import Stratum, Subset
from curation_assets.methods.method import ScoreSection
from curation_assets.methods.selectors.band import Band, middle_begins
from curation_assets.methods.selectors.per_prompt import PerPrompt, takes_all, takes_one
from curation_assets.subsets.budget import BINS, STRATUM_LENGTHS, Prefix, Shares, samples_of
from curation_assets.subsets.eligibility import LOW_SIGNAL_PERCENT
from curation_assets.subsets.selection import Selection, SubsetDigest, subset_rows
from curation_assets.subsets.spilled_pool import ID, SpilledSelector, pool_on_disk, without_filtered_on_disk
from curation_assets.subsets.summary import POINTS, POOL_FACTS, Summing
from curation_resources.storage.spill import Spill

Take = Callable[[pl.DataFrame], object]

LOW_SIGNAL = """coalesce(
    answer_norm < (select answer_norm from lowest)
    or answer_norm = (select answer_norm from lowest) and sample_id <= (select sample_id from lowest), false)"""
"""Whether a row is among the lowest percent, of which table `lowest` holds the last."""


@dataclass(frozen=True)
class Counts:
    """Of table `pool`, how many rows are eligible, may be chosen, have a prompt that is held out, have a norm."""

    eligible: int
    may: int
    held_out: int
    norms: int


def choose_out_of_core(
    spill: Spill,
    arrived: pl.LazyFrame,
    score: ScoreSection,
    selector: SpilledSelector,
    subset: Subset,
    take: Take,
    known: pl.LazyFrame | None = None,
    prompts: Sequence[str] | None = None,
) -> Selection:
    """Choose a subset of scored samples, as `select.choose` does in memory.

    Args:
        spill: an empty one.
        arrived: rows of `sample_scores` with the score in column `score`, exact duplicates included.
        score: what the score is.
        selector: how it is chosen.
        subset: filters, strata, budget.
        take: is given the rows of table `subset`, best first, in pieces.
        known: which samples the corpus' filters leave out (table `pool` of the warehouse); None without filters.
        prompts: those of the validation sets that the score looks at; None if it looks at none.

    Raises:
        QualityError: the corpus' filters have not been applied to some of the samples.
    """
    duplicates = pool_on_disk(spill, arrived, score, selector, subset, prompts)
    filtered = without_filtered_on_disk(spill, known)
    counts = Counts(
        *spill.row(
            "select count(*) filter (eligible), count(*) filter (may), count(*) filter (held_out), count(answer_norm) "
            "from pool"
        )
    )
    _find_lowest(spill, counts.norms * LOW_SIGNAL_PERCENT // 100)
    sizes = _strata(spill, subset.stratify, weight=_weight(subset))
    left_out = _rank(spill, selector, subset, counts)
    order = _Order(spill, selector, subset, counts, sizes)
    points = f"select response_tokens, score from pool where isfinite(score) order by sample_id limit {POINTS}"
    summing = Summing(
        lambda: spill.stream(f"select {', '.join(POOL_FACTS)} from pool"),
        pl.concat([_no_points(), *spill.stream(points)]),
    )
    digest, before = SubsetDigest(), 0
    for chosen in order.taken():
        rows = subset_rows(chosen, score.name, before)
        take(rows)
        digest.add(rows)
        summing.choose(chosen)
        before += len(rows)
    held_out = None if prompts is None else counts.held_out
    return Selection(summing.summary(), digest.value(), duplicates, filtered, left_out, order.whole, held_out)


def _no_points() -> pl.DataFrame:
    return pl.DataFrame(schema={"response_tokens": pl.Int32, "score": pl.Float64})


def _weight(subset: Subset) -> str:
    """What a row takes of the budget."""
    return "1" if subset.budget.tokens is None else "coalesce(response_tokens, 0)"


def _find_lowest(spill: Spill, count: int) -> None:
    """Table `lowest`: the last of so many rows with the lowest norms, ties by sample_id; empty if there are none."""
    spill.run(
        "create table lowest as select answer_norm, sample_id from pool where answer_norm is not null "
        f"order by answer_norm, sample_id limit {min(count, 1)} offset {max(count - 1, 0)}"
    )


# Strata


def _strata(spill: Spill, stratify: Sequence[Stratum], weight: str) -> list[int]:
    """Table `strata`, which numbers them in the order of their names; gives what the eligible of each weigh."""
    parts = [
        f"{_decile(spill, STRATUM_LENGTHS[name]) if name in STRATUM_LENGTHS else _named(name)} as part_{place}"
        for place, name in enumerate(stratify)
    ]
    # Of rows that are not eligible no stratum is asked.
    spill.run(f"create view parted as select {', '.join(['*', *parts])} from pool where eligible")
    if not stratify:
        return []
    names = ", ".join(_parts(stratify))
    found = sorted(spill.rows(f"select {names}, sum({weight})::bigint from parted group by {names}"))
    columns = [*_parts(stratify), "size"]
    frame = pl.DataFrame(found, schema=columns, orient="row", infer_schema_length=None).with_row_index("stratum")
    spill.run(f"create table strata as select stratum, {names} from parted, (select 0 as stratum) limit 0")
    spill.load(f"insert into strata select stratum, {names} from frame", [frame] if len(frame) else [])
    return [int(size) for size in frame["size"]]


def _parts(stratify: Sequence[Stratum]) -> list[str]:
    return [f"part_{place}" for place in range(len(stratify))]


def _named(column: str) -> str:
    return f"coalesce({column}, '(none)')"


def _decile(spill: Spill, column: str) -> str:
    """Which tenth of the eligible a number lies in, as an expression: equal numbers are in one."""
    known = f"eligible and {column} is not null"
    counts = spill.rows(f"select {column}, count(*) from pool where {known} group by {column} order by {column}")
    whole = max(sum(count for _, count in counts), 1)
    cases, before, last = [], 0, 0
    for value, count in counts:
        tenth = before * BINS // whole
        if tenth != last:
            cases.append(f"when {column} >= {value} then {tenth}")
            last = tenth
        before += count
    # The highest first: the first case that holds counts. Null is in none, and in the first tenth.
    return f"case {' '.join(reversed(cases))} else 0 end" if cases else "0"


# Ranking


def _rank(spill: Spill, selector: SpilledSelector, subset: Subset, counts: Counts) -> dict[str, int]:
    """Table `ranked`: what may be taken, in order; gives what the selector leaves out, by reason."""
    grouped = isinstance(selector, PerPrompt)
    candidates = _best_of_prompts(selector) if isinstance(selector, PerPrompt) else "select * from parted where may"
    numbered = f"join strata using ({', '.join(_parts(subset.stratify))})" if subset.stratify else ""
    most = samples_of(subset.budget, counts.eligible)
    # The middle band begins in the middle of all.
    whole_order = grouped or most is None or subset.stratify or _is_middle(selector)
    spill.run(
        f"create table ranked as select sample_id, score, source, ({_weight(subset)})::bigint as weight, "
        f"{LOW_SIGNAL} as low_signal, {'stratum' if subset.stratify else '0'} as stratum "
        f"from ({candidates}) {numbered} order by key, sample_id {'' if whole_order else f'limit {most}'}"
    )
    if not isinstance(selector, PerPrompt):
        return {}
    alone = spill.row(
        "select count(*) from (select prompt_id from pool where may group by prompt_id having count(*) = 1)"
    )[0]
    left_out = {"single_response": alone}
    if selector.variant != "full":
        left_out["not_of_its_prompt"] = counts.may - alone - spill.row("select count(*) from ranked")[0]
    return {reason: count for reason, count in left_out.items() if count}


def _best_of_prompts(selector: PerPrompt) -> str:
    """What a variant takes of each prompt with two responses or more."""
    columns = ["count(*) over (partition by prompt_id) as responses"]
    conditions = ["responses > 1", "allowed"]
    if not takes_all(selector):
        columns.append("row_number() over (partition by prompt_id, allowed order by key, sample_id) as place")
        if takes_one(selector):
            conditions.append("place = 1")
        elif selector.k == "original":
            columns.append("count(*) filter (original) over (partition by prompt_id) as originals")
            conditions.append("place <= originals")
        else:
            conditions.append(f"place <= {selector.k}")
    return f"select * from (select *, {', '.join(columns)} from parted where may) where {' and '.join(conditions)}"


def _is_middle(selector: SpilledSelector) -> bool:
    return isinstance(selector, Band) and selector.band == "middle"


class _Order:
    """Table `ranked` as it is gone through: which of its rows a budget takes.

    Attributes:
        whole: whether the budget is larger than all of them.
    """

    def __init__(
        self, spill: Spill, selector: SpilledSelector, subset: Subset, counts: Counts, sizes: Sequence[int]
    ) -> None:
        self._spill, self._sizes = spill, sizes
        columns = f"select {ID}, score, source, low_signal, weight, stratum::bigint as stratum from ranked"
        # A table that was made in order has its rows in it, and gives them so.
        self._queries = [columns]
        if _is_middle(selector):
            # A budget that reaches beyond the end goes on where the band began, upwards.
            begin = middle_begins(counts.eligible, counts.may)
            self._queries = [
                f"{columns} where rowid >= {begin}",
                f"{columns} where rowid < {begin} order by rowid desc",
            ]
        samples = samples_of(subset.budget, counts.eligible)
        self._limit = int(subset.budget.tokens or 0) if samples is None else samples
        self.whole = bool(spill.row("select coalesce(sum(weight), 0) from ranked")[0] < self._limit)
        self._stratified = bool(subset.stratify)

    def taken(self) -> Iterator[pl.DataFrame]:
        """The rows that the budget takes, in order."""
        if self.whole:
            yield from self._pieces()
            return
        shares = Shares(self._limit, self._sizes)
        room = self._limit
        if self._stratified:
            # What shares leave is known when all have gone by.
            for piece in self._pieces():
                shares.take(*_numbers(piece))
            room, shares = shares.room(), Shares(self._limit, self._sizes)
        others = Prefix(room)
        for piece in self._pieces():
            weights, stratum = _numbers(piece)
            taken = shares.take(weights, stratum) if self._stratified else np.zeros(len(piece), dtype=np.bool_)
            taken[~taken] = others.take(weights[~taken])
            yield piece.filter(pl.Series(taken))
            if others.full and not self._stratified:
                return

    def _pieces(self) -> Iterator[pl.DataFrame]:
        for query in self._queries:
            yield from self._spill.stream(query)


def _numbers(piece: pl.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return piece["weight"].to_numpy(), piece["stratum"].to_numpy()
