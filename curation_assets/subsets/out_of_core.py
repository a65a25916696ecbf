"""Choose from a pool larger than memory, with the same rows, order and facts as in memory, bit for bit.

Ranking is a sort on disk, and the best of each prompt a window over it. The budget is filled while the order streams
by, and the subset's rows are emitted in pieces. Memory holds one such piece and DuckDB's own buffers.
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
"""SQL condition: the row is among the lowest percent; table `lowest` holds the last of these."""


@dataclass(frozen=True)
class Counts:
    """Counts of table `pool`: rows that are eligible, may be chosen, have a held-out prompt, and have a norm."""

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
        spill: an empty spill database.
        arrived: rows of `sample_scores` with the score in column `score`, including exact duplicates.
        score: the score's configuration.
        selector: the selector.
        subset: filters, strata, budget.
        take: receives the rows of table `subset`, best first, in pieces.
        known: samples removed by the corpus' filters (table `pool` of the warehouse); None without filters.
        prompts: prompts of the validation sets that the score uses; None if it uses none.

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
    """Return the expression for a row's weight in the budget."""
    return "1" if subset.budget.tokens is None else "coalesce(response_tokens, 0)"


def _find_lowest(spill: Spill, count: int) -> None:
    """Create table `lowest` with the last of the `count` rows of lowest norm, ties by sample_id; it may be empty."""
    spill.run(
        "create table lowest as select answer_norm, sample_id from pool where answer_norm is not null "
        f"order by answer_norm, sample_id limit {min(count, 1)} offset {max(count - 1, 0)}"
    )


# Strata


def _strata(spill: Spill, stratify: Sequence[Stratum], weight: str) -> list[int]:
    """Create table `strata`, numbered in the order of their names; return the eligible weight of each."""
    parts = [
        f"{_decile(spill, STRATUM_LENGTHS[name]) if name in STRATUM_LENGTHS else _named(name)} as part_{place}"
        for place, name in enumerate(stratify)
    ]
    # Only eligible rows need a stratum.
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
    """Return an expression for the decile of a column among eligible rows; equal values share a decile."""
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
    # Highest first, since the first matching case wins. Null matches none and belongs to the first decile.
    return f"case {' '.join(reversed(cases))} else 0 end" if cases else "0"


# Ranking


def _rank(spill: Spill, selector: SpilledSelector, subset: Subset, counts: Counts) -> dict[str, int]:
    """Create table `ranked` with the rows that may be taken, in order; return those the selector omits, by reason."""
    grouped = isinstance(selector, PerPrompt)
    candidates = _best_of_prompts(selector) if isinstance(selector, PerPrompt) else "select * from parted where may"
    numbered = f"join strata using ({', '.join(_parts(subset.stratify))})" if subset.stratify else ""
    most = samples_of(subset.budget, counts.eligible)
    # The middle band starts in the middle of the complete order.
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
    """Return the query for the rows that a variant takes of each prompt with two or more responses."""
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
    """Streams table `ranked` and selects the rows that fit the budget.

    Attributes:
        whole: whether the budget is larger than all rows.
    """

    def __init__(
        self, spill: Spill, selector: SpilledSelector, subset: Subset, counts: Counts, sizes: Sequence[int]
    ) -> None:
        self._spill, self._sizes = spill, sizes
        columns = f"select {ID}, score, source, low_signal, weight, stratum::bigint as stratum from ranked"
        # DuckDB returns the rows of a table that was created in order in that order.
        self._queries = [columns]
        if _is_middle(selector):
            # A budget that reaches past the end continues upwards from the start of the band.
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
        """Yield the rows that fit the budget, in order."""
        if self.whole:
            yield from self._pieces()
            return
        shares = Shares(self._limit, self._sizes)
        room = self._limit
        if self._stratified:
            # The remainder of the shares is known only after a complete pass.
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
