"""Choose a subset of a pool of any size: the pool is a DuckDB table (`curation_resources.storage.spill`).

Row-wise columns are computed on arrival. Ranking is a sort, and the best of each prompt a window over it; tables, sorts
and windows spill to disk when they reach the memory limit. Only a selector that orders the candidates itself
(`Selector.order`) gets them in memory. The budget is filled while the order streams by, and the subset's rows are
emitted in pieces.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curation_assets import tables
from curation_assets.config.settings import Stratum, Subset, vectors_named
from curation_assets.corpus.duplicates import ARRIVAL
from curation_assets.methods.combined import Combination
from curation_assets.methods.method import ScoreSection
from curation_assets.methods.registry import method_of
from curation_assets.methods.selectors.candidates import Candidates, Features, Keys, Mask, SelectorSection
from curation_assets.methods.selectors.registry import order_by_stratum, selector_of
from curation_assets.quality.filtered_pool import refuse_unknown
from curation_assets.subsets.budget import BINS, STRATUM_LENGTHS, Prefix, Shares, samples_of
from curation_assets.subsets.eligibility import LOW_SIGNAL_PERCENT, eligible, marked_right
from curation_assets.subsets.facts import (
    CHOSEN_FACTS,
    POINTS,
    POOL_FACTS,
    Marks,
    Selection,
    SubsetDigest,
    Summing,
    subset_rows,
)
from curation_assets.subsets.moments import GROUP, VALUE, moments_by_group
from curation_assets.subsets.thresholds import (
    GROUPS,
    Stage,
    apply_threshold,
    combined_rows,
    count_stage,
    finite,
    replace_pool,
)
from curation_resources.storage.spill import Spill

logger = logging.getLogger("curation")

Take = Callable[[pl.DataFrame], object]

READ_ROWS = 250_000
"""Rows of scores in memory at a time, in addition to those that Polars prefetches."""

POOL_COLUMNS = [name for name in tables.SAMPLE_SCORES.columns if name != "flags"]
"""Columns of `sample_scores` that selection reads, beside the score."""

TYPES: dict[Any, str] = {
    pl.String: "varchar",
    pl.Boolean: "boolean",
    pl.Int32: "integer",
    pl.Int64: "bigint",
    pl.Float32: "float",
    pl.Float64: "double",
}
"""DuckDB's types of columns."""

COLUMNS = {
    **{name: TYPES[tables.SAMPLE_SCORES.columns[name].dtype.base_type()] for name in POOL_COLUMNS},
    "sample_id": "uuid",
    "prompt_id": "uuid",
    "score": "double",
    "eligible": "boolean",
    "may": "boolean",
    "key": "double",
    "allowed": "boolean",
    "original": "boolean",
    "held_out": "boolean",
    "marked_right": "boolean",
    "dropped": "smallint",
}
"""Columns of table `pool`: those of `sample_scores`, of which ids become 128-bit numbers that sort like their texts;
`eligible`; `may` (eligible with a score); `key`, `allowed` and `original` of a ranking (`Keys`); `held_out` (its prompt
is in a validation set); `marked_right`; `dropped` (by a threshold: `thresholds.apply_threshold`)."""

NEEDED = {name for name in COLUMNS if name not in POOL_COLUMNS and name != "dropped"} | {
    "sample_id",
    "source",
    "n_steps",
    "response_tokens",
    "answer_norm",
}
"""Columns that every selection needs; the others take space only if a selector or a stratum reads them."""

OF_Z = {"z": "double"}
"""Column that table `pool` gets if scores are standardised."""

ID = "replace(sample_id::varchar, '-', '') as sample_id"
"""SQL expression for the text of an id."""

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


@dataclass(frozen=True)
class Beside:
    """The data that a selection reads beside the rows of its score's target.

    Attributes:
        columns: for each score that thresholds and combinations read, its column of table `pool`.
        arriving: those of these columns that arrive with the rows.
        others: `sample_id` and the other columns, by target; a sample may occur more than once.
        incoming: `sample_id` of the samples that the subset is chosen from; None: all that arrive.
        incoming_rows: their number.
        before: the stages that led to these.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    arriving: Sequence[str] = ()
    others: Sequence[pl.LazyFrame] = ()
    incoming: pl.LazyFrame | None = None
    incoming_rows: int = 0
    before: Sequence[Stage] = ()


def choose(
    spill: Spill,
    arrived: Iterable[pl.DataFrame],
    score: ScoreSection,
    section: SelectorSection,
    subset: Subset,
    take: Take,
    known: pl.LazyFrame | None = None,
    features: Features | None = None,
    many: int | None = None,
    duplicates: int | None = None,
    beside: Beside = Beside(),
    explain: Take | None = None,
) -> Selection:
    """Choose a subset of scored samples; deterministic to the bit, whatever the order and the pieces of the rows.

    Args:
        spill: an empty spill database.
        arrived: rows of `sample_scores` (POOL_COLUMNS; `prompt_id` only if `reads_prompts`) with the score in column
            `score` (null if it is a combination) and the scores of the same target in the columns that `beside` names,
            in pieces, including exact duplicates.
        score: the score's configuration.
        section: the selector's parameters.
        subset: filters, strata, budget.
        take: receives the rows of table `subset`, best first, in pieces.
        known: samples removed by the corpus' filters (table `pool` of the warehouse); None without filters.
        features: embeddings and validation prompts, if the score's method has them.
        many: a warning is logged if more candidates than this are held in memory.
        duplicates: number of copies that were removed before; None: `arrived` may contain a sample more than once.
        beside: other scores, and the subset that this one is chosen from.
        explain: receives, for every sample that the subset is chosen from, `sample_id`, `score`, `eligible`, `may` and
            `dropped`, in pieces.

    Raises:
        QualityError: the corpus' filters have not been applied to some of the samples.
        CombinationError: scores cannot be combined.
        SpillError: memory or disk is too small for the pool.
    """
    order = _ranked_pool(spill, arrived, score, section, subset, known, features, many, duplicates, beside)
    points = f"select response_tokens, score from pool where isfinite(score) order by sample_id limit {POINTS}"
    summing = Summing(lambda: spill.stream(f"select {', '.join(POOL_FACTS)} from pool"), spill.frame(points))
    digest, before = SubsetDigest(), 0
    for chosen in order.taken():
        rows = subset_rows(chosen, score.name, before)
        take(rows)
        digest.add(rows)
        summing.choose(chosen)
        before += len(rows)
    summary = summing.summary()
    marks = summary.selected_marks
    selected = Stage(subset.name, "selected", summary.selected, summing.tokens, marks.marked, marks.right)
    if explain is not None:
        dropped = "dropped" if subset.filters.scores else "null::smallint as dropped"
        for piece in spill.stream(f"select {ID}, score, eligible, may, {dropped} from pool"):
            explain(piece)
    return Selection(
        summary=summary,
        content_digest=digest.value(),
        whole=order.whole,
        **{field.name: getattr(order.facts, field.name) for field in fields(order.facts) if field.name != "funnel"},
        funnel=(*order.facts.funnel, selected),
    )


def choose_ids(
    spill: Spill,
    arrived: Iterable[pl.DataFrame],
    score: ScoreSection,
    section: SelectorSection,
    subset: Subset,
    take: Take,
    known: pl.LazyFrame | None = None,
    features: Features | None = None,
    many: int | None = None,
    beside: Beside = Beside(),
) -> tuple[Stage, ...]:
    """Choose the same samples as `choose`, without their order and without the facts about their selection.

    Args:
        spill: an empty spill database.
        arrived: see `choose`.
        score: see `choose`.
        section: see `choose`.
        subset: see `choose`.
        take: receives frames with `sample_id`, in any order.
        known: see `choose`.
        features: see `choose`.
        many: see `choose`.
        beside: see `choose`.

    Returns:
        The stages up to and with the selection.
    """
    order = _ranked_pool(spill, arrived, score, section, subset, known, features, many, None, beside, ids_alone=True)
    samples = tokens = 0
    marks = Marks()
    for chosen in order.taken():
        take(chosen.select("sample_id"))
        samples += len(chosen)
        tokens += int(chosen["response_tokens"].sum() or 0)
        marks = marks.adding(chosen["marked_right"])
    return (*order.facts.funnel, Stage(subset.name, "selected", samples, tokens, marks.marked, marks.right))


def _ranked_pool(
    spill: Spill,
    arrived: Iterable[pl.DataFrame],
    score: ScoreSection,
    section: SelectorSection,
    subset: Subset,
    known: pl.LazyFrame | None,
    features: Features | None,
    many: int | None,
    duplicates: int | None,
    beside: Beside,
    *,
    ids_alone: bool = False,
) -> _Order:
    """Load the pool, narrow it, and rank what is left; see `choose`."""
    selector = selector_of(section)
    prompts = None if features is None or features.prompts is None else features.prompts()
    _load_pool(spill, arrived, score, section, subset, prompts, beside.arriving, distinct=duplicates is not None)
    _keep_incoming(spill, beside.incoming)
    if duplicates is None:
        duplicates = _remove_copies(spill)
        _drop_columns(spill, section, subset)
    filtered = _remove_filtered(spill, known)
    _join_scores(spill, beside.others)
    funnel = _narrow(spill, subset, score, beside)
    if isinstance(subset.score, Combination):
        combined_rows(spill, subset.score, beside.columns)
    scored = count_stage(spill, subset.name, f"has {score.name}", "may")
    funnel += [scored] if scored.samples < funnel[-1].samples else []
    vectors = vectors_named(subset.selector)
    if vectors is not None:
        spill.run(f"update pool set may = false where may and not {finite(beside.columns[vectors])}")
        compared = count_stage(spill, subset.name, f"has {vectors}", "may")
        funnel += [compared] if compared.samples < funnel[-1].samples else []
    sources, flat = (None, 0) if subset.standardise is None else _standardise(spill, score, section)
    if isinstance(subset.score, Combination) and subset.standardise is None:
        _rank_again(spill, lambda rows: _ranked_by_score(rows, score, section))
    counts = Counts(
        *spill.row(
            "select count(*) filter (eligible), count(*) filter (may), count(*) filter (held_out), count(answer_norm) "
            "from pool"
        )
    )
    _find_lowest(spill, counts.norms * LOW_SIGNAL_PERCENT // 100)
    sizes = _create_strata(spill, subset.stratify, weight=_weight(subset))
    begin, warnings = 0, tuple[str, ...]()
    if selector.rank is None:
        if many is not None and counts.eligible > many:
            # Vectors dominate memory and every step reads all of them, so sorting on disk would not help.
            logger.warning(
                "subset %s: selector %s holds all %d candidates and their vectors in memory. If memory runs out, "
                "narrow the subset's filters, or choose another selector.",
                *(subset.name, selector.kind, counts.eligible),
            )
        left_out, warnings = _rank_in_memory(spill, section, score, subset, counts, features)
        for warning in warnings:
            logger.warning("subset %s: %s.", subset.name, warning)
    else:
        begin = selector.begins(section, counts.eligible, counts.may) if selector.begins else 0
        most = samples_of(subset.budget, counts.eligible)
        in_order = not (ids_alone and most is not None and most >= counts.may)
        left_out = _rank(spill, section, subset, counts, whole_order=begin > 0, in_order=in_order)
    facts = _Facts(
        *(tuple(funnel), duplicates, filtered, left_out, None if prompts is None else counts.held_out, warnings),
        *(sources, flat),
    )
    return _Order(spill, subset, counts, sizes, begin, facts)


def reads_prompts(section: SelectorSection, features: Features | None, subset: Subset) -> bool:
    """Return whether choosing reads the column `prompt_id`."""
    selector = selector_of(section)
    held_out = features is not None and features.prompts is not None
    held_out = held_out or any(threshold.within == "prompt" for threshold in subset.filters.scores)
    return held_out or selector.rank is None or selector.per_prompt is not None


# The pool


def _load_pool(
    spill: Spill,
    arrived: Iterable[pl.DataFrame],
    score: ScoreSection,
    section: SelectorSection,
    subset: Subset,
    prompts: Sequence[str] | None,
    arriving: Sequence[str],
    *,
    distinct: bool,
) -> None:
    """Fill table `pool`."""
    selector = selector_of(section)
    kept = (
        NEEDED
        | (set() if distinct else {*ARRIVAL})
        | {*subset.stratify}
        | ({"prompt_id"} if selector.per_prompt else set())
        | ({"dropped"} if subset.filters.scores else set())
        | {GROUPS[threshold.within] for threshold in subset.filters.scores}
    )
    if selector.rank is None:
        kept |= {*POOL_COLUMNS}
    else:
        kept |= _ranked_later(section, subset)
    columns = {name: kind for name, kind in COLUMNS.items() if name in kept}
    columns |= dict.fromkeys(arriving, "double")
    spill.run(f"create table pool ({', '.join(f'{name} {kind}' for name, kind in columns.items())})")
    values = ", ".join(f"{name}::{kind}" for name, kind in columns.items())
    marked = (_marked(rows, score, section, subset, prompts) for rows in arrived)
    spill.load(f"insert into pool select {values} from frame", marked)


def _ranked_later(section: SelectorSection, subset: Subset) -> set[str]:
    """Return the columns that are needed because rows are ranked again when all have arrived."""
    if subset.standardise is None and isinstance(subset.score, str):
        return set()
    reads = selector_of(section).reads
    return {*POOL_COLUMNS} - {"prompt_id"} if reads is None else {*reads}


def _drop_columns(spill: Spill, section: SelectorSection, subset: Subset) -> None:
    """Drop the columns of table `pool` that decide which copy of a sample stays, where nothing else needs them."""
    if selector_of(section).rank is None:
        return
    for name in sorted({*ARRIVAL} - NEEDED - _ranked_later(section, subset) - {*subset.stratify}):
        spill.run(f"alter table pool drop column {name}")


def _marked(
    rows: pl.DataFrame,
    score: ScoreSection,
    section: SelectorSection,
    subset: Subset,
    prompts: Sequence[str] | None,
) -> pl.DataFrame:
    """Add the columns of table `pool` to rows."""
    may_pass = rows.select(eligible(score, subset.filters)).to_series()
    values = rows["score"].fill_null(float("nan")).to_numpy()
    may = may_pass.to_numpy() & np.isfinite(values)
    held_out = pl.lit(value=False) if prompts is None else pl.col("prompt_id").is_in(list(prompts))
    return rows.with_columns(
        held_out=held_out,
        dropped=pl.lit(None, dtype=pl.Int16),
        marked_right=marked_right(),
        answer_norm=pl.col("answer_norm").fill_nan(None),
        eligible=may_pass,
        may=pl.Series(may),
        **_keys(rows, values, may, score, section),
    )


def _keys(
    rows: pl.DataFrame, values: NDArray[np.float64], may: Mask, score: ScoreSection, section: SelectorSection
) -> dict[str, pl.Series]:
    """Return the columns of table `pool` by which rows are ranked: by these values, for those that may be chosen."""
    rank = selector_of(section).rank
    found = Candidates(rows, values, may, method_of(score).highest_first)
    keys = Keys(np.zeros(len(rows))) if rank is None else rank(section, found)
    columns: dict[str, Any] = {
        "allowed": may if keys.allowed is None else keys.allowed,
        "original": may if keys.original is None else keys.original,
        # Turn -0.0 into 0.0, so that both sort as equal.
        "key": keys.key + 0.0,
    }
    return {name: pl.Series(name, values) for name, values in columns.items()}


def _remove_copies(spill: Spill) -> int:
    """Keep one row per sample_id: the lowest shard, then row, then candidate. Return the number of rows removed."""
    spill.run("create table copied as select sample_id from pool group by sample_id having count(*) > 1")
    spill.run(
        "create table copies as select rowid as place from pool semi join copied using (sample_id) "
        "qualify row_number() over (partition by sample_id order by shard, row, candidate) > 1"
    )
    spill.run("delete from pool where rowid in (select place from copies)")
    count: int = spill.row("select count(*) from copies")[0]
    return count


def _remove_filtered(spill: Spill, known: pl.LazyFrame | None) -> dict[str, int]:
    """Remove samples excluded by the corpus' filters from table `pool`; return their number by reason."""
    if known is None:
        return {}
    spill.run("create table known (sample_id uuid, reason varchar)")
    batches = known.select("sample_id", "reason").collect_batches(chunk_size=READ_ROWS, engine="streaming")
    spill.load("insert into known select sample_id::uuid, reason from frame", batches)
    refuse_unknown(spill.row("select count(*) from pool anti join known using (sample_id)")[0])
    out = "pool join (select * from known where reason is not null) using (sample_id)"
    counts = dict(spill.rows(f"select reason, count(*) from {out} group by reason order by reason"))
    spill.run("delete from pool where sample_id in (select sample_id from known where reason is not null)")
    return counts


def _keep_incoming(spill: Spill, incoming: pl.LazyFrame | None) -> None:
    """Remove samples that are not in the subset that this one is chosen from from table `pool`."""
    if incoming is None:
        return
    spill.run("create table incoming (sample_id uuid)")
    batches = incoming.select("sample_id").collect_batches(chunk_size=READ_ROWS, engine="streaming")
    spill.load("insert into incoming select sample_id::uuid from frame", batches)
    spill.run("delete from pool where sample_id not in (select sample_id from incoming)")


def _join_scores(spill: Spill, others: Sequence[pl.LazyFrame]) -> None:
    """Add the columns of other targets' scores to table `pool`."""
    for scan in others:
        names = [name for name in scan.collect_schema().names() if name != "sample_id"]
        spill.run(f"create table other (sample_id uuid, {', '.join(f'{name} double' for name in names)})")
        batches = scan.collect_batches(chunk_size=READ_ROWS, engine="streaming")
        spill.load(f"insert into other select sample_id::uuid, {', '.join(names)} from frame", batches)
        once = f"select sample_id, {', '.join(f'max({name}) as {name}' for name in names)} from other group by all"
        replace_pool(spill, f"select * from pool left join ({once}) using (sample_id)")
        spill.run("drop table other")


def _narrow(spill: Spill, subset: Subset, score: ScoreSection, beside: Beside) -> list[Stage]:
    """Apply a subset's thresholds, and return the stages up to the last of them.

    What happens to every subset is a stage only where it leaves fewer samples, or other tokens.
    """
    stages = list(beside.before)
    begins = count_stage(spill, subset.name, "pool" if subset.parent is None else f"from {subset.parent}", "true")
    if not stages or (begins.samples, begins.tokens) != (stages[-1].samples, stages[-1].tokens):
        stages.append(begins)
    by_row = count_stage(spill, subset.name, _row_filters(subset, score))
    stages += [by_row] if by_row.samples < stages[-1].samples else []
    for number, threshold in enumerate(subset.filters.scores):
        no_value = apply_threshold(spill, number, threshold, beside.columns)
        stages.append(count_stage(spill, subset.name, threshold.title, no_value=no_value))
    return stages


def _row_filters(subset: Subset, score: ScoreSection) -> str:
    """Return the name of the stage of the filters that look at each row alone."""
    given = subset.filters.model_dump(exclude_defaults=True, exclude={"scores"})
    names = [*given, *([f"min_steps of {score.name}"] if score.min_steps else [])]
    return f"filters ({', '.join(names)})"


def _standardise(spill: Spill, score: ScoreSection, section: SelectorSection) -> tuple[int, int]:
    """Add column `z` to table `pool`, and rank its rows by it instead of the score.

    It is the distance of a score from the mean of its source in standard deviations, among the rows that may be
    chosen; 0 if their scores do not vary. Return the number of sources, and of those without a deviation.
    """
    query = f'select source as "{GROUP}", score as "{VALUE}" from pool where may'
    moments = moments_by_group(lambda: spill.stream(query))
    by_source = pl.DataFrame(
        [(source, own.mean, own.deviation if own.varies else None) for source, own in moments.items()],
        schema={"source": pl.String, "mean": pl.Float64, "deviation": pl.Float64},
        orient="row",
    )
    spill.run("alter table pool add column z double")
    _rank_again(spill, lambda rows: _ranked_by_z(rows, by_source, score, section))
    return len(by_source), by_source["deviation"].null_count()


def _rank_again(spill: Spill, ranked: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Rank the rows of table `pool` again: `ranked` returns pieces of it with other keys."""
    columns = {name: kind for name, kind, *_ in spill.rows("select column_name, column_type from (describe pool)")}
    texts = [f"replace({name}::varchar, '-', '') as {name}" for name in ("sample_id", "prompt_id") if name in columns]
    values = ", ".join(f"{name}::{kind}" for name, kind in columns.items())
    spill.run("create table ranked_again as select * from pool limit 0")
    pieces = map(ranked, spill.stream(f"select * replace ({', '.join(texts)}) from pool"))
    spill.load(f"insert into ranked_again select {values} from frame", pieces)
    spill.run("drop table pool")
    spill.run("alter table ranked_again rename to pool")


def _ranked_by_z(
    rows: pl.DataFrame, by_source: pl.DataFrame, score: ScoreSection, section: SelectorSection
) -> pl.DataFrame:
    """Return rows of table `pool` with `z` and the keys that follow from it."""
    known = rows.join(by_source, on="source", how="left", nulls_equal=True, maintain_order="left")
    distance = (pl.col("score") - pl.col("mean")) / pl.col("deviation")
    # Turn -0.0 into 0.0, as it is shown.
    z = known.select(pl.when("may").then(distance.fill_null(0.0) + 0.0)).to_series()
    values = z.fill_null(float("nan")).to_numpy()
    return rows.with_columns(z=z, **_keys(rows, values, rows["may"].to_numpy(), score, section))


def _ranked_by_score(rows: pl.DataFrame, score: ScoreSection, section: SelectorSection) -> pl.DataFrame:
    """Return rows of table `pool` with the keys that follow from their score."""
    values = rows["score"].fill_null(float("nan")).to_numpy()
    return rows.with_columns(**_keys(rows, values, rows["may"].to_numpy(), score, section))


def _weight(subset: Subset) -> str:
    """Return the expression for a row's weight in the budget."""
    return "1" if subset.budget.tokens is None else "coalesce(response_tokens, 0)"


def _find_lowest(spill: Spill, count: int) -> None:
    """Create table `lowest` with the last of the `count` rows of lowest norm, ties by sample_id; it may be empty."""
    # Norms alone sort faster than norms with ids.
    spill.run(
        "create table norms as select answer_norm from pool where answer_norm is not null "
        f"order by answer_norm limit {count}"
    )
    below = "(select count(*) from norms where answer_norm < (select max(answer_norm) from norms))"
    spill.run(
        "create table lowest as select answer_norm, sample_id from pool "
        "where answer_norm = (select max(answer_norm) from norms) "
        f"order by sample_id limit {min(count, 1)} offset {max(count - 1, 0)} - {below}"
    )


# Strata


def _create_strata(spill: Spill, stratify: Sequence[Stratum], weight: str) -> list[int]:
    """Create view `parted` (eligible rows with their `stratum`); return the eligible weight of each stratum.

    Strata are numbered in the order of their names. Without strata, all rows are in number 0 and no weight is returned.
    """
    parts = [
        f"{_decile(spill, STRATUM_LENGTHS[name]) if name in STRATUM_LENGTHS else _named(name)} as part_{place}"
        for place, name in enumerate(stratify)
    ]
    if not stratify:
        spill.run("create view parted as select *, 0 as stratum from pool where eligible")
        return []
    # Only eligible rows need a stratum.
    spill.run(f"create view named as select {', '.join(['*', *parts])} from pool where eligible")
    names = ", ".join(f"part_{place}" for place in range(len(stratify)))
    found = sorted(spill.rows(f"select {names}, sum({weight})::bigint from named group by {names}"))
    columns = [*(f"part_{place}" for place in range(len(stratify))), "size"]
    frame = pl.DataFrame(found, schema=columns, orient="row", infer_schema_length=None).with_row_index("stratum")
    spill.run(f"create table strata as select stratum, {names} from named, (select 0 as stratum) limit 0")
    spill.load(f"insert into strata select stratum, {names} from frame", [frame] if len(frame) else [])
    spill.run(f"create view parted as select * from named join strata using ({names})")
    return [int(size) for size in frame["size"]]


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


def _ranked_columns(subset: Subset) -> str:
    weight = f"({_weight(subset)})::bigint as weight"
    columns = f"score, source, response_tokens, {weight}, {LOW_SIGNAL} as low_signal, marked_right, stratum"
    return columns if subset.standardise is None else f"{columns}, z"


def _rank(
    spill: Spill, section: SelectorSection, subset: Subset, counts: Counts, *, whole_order: bool, in_order: bool
) -> dict[str, int]:
    """Create table `ranked` with the rows that may be taken, by `key`; return those that are omitted, by reason.

    Only as many rows as the budget can take are kept, unless strata, prompts or `whole_order` need the others. Not
    `in_order`: the budget takes all of them, and their order does not matter.
    """
    per_prompt, most = selector_of(section).per_prompt, samples_of(subset.budget, counts.eligible)
    candidates, limit = "select * from parted where may", ""
    if per_prompt is not None:
        candidates = _best_of_prompts(per_prompt(section))
    elif most is not None and not subset.stratify and not whole_order:
        limit = f"limit {min(most, counts.eligible)}"
    spill.run(
        f"create table ranked as select sample_id, {_ranked_columns(subset)} from ({candidates}) "
        f"{'order by key, sample_id' if in_order else ''} {limit}"
    )
    if per_prompt is None:
        return {}
    alone = spill.row(
        "select count(*) from (select prompt_id from pool where may group by prompt_id having count(*) = 1)"
    )[0]
    left_out = {
        "single_response": alone,
        "not_of_its_prompt": counts.may - alone - spill.row("select count(*) from ranked")[0],
    }
    return {reason: count for reason, count in left_out.items() if count}


def _best_of_prompts(most: int | Literal["original"] | None) -> str:
    """Return the query for the rows that are taken of each prompt with two or more responses; see `Selector`."""
    columns = ["count(*) over (partition by prompt_id) as responses"]
    conditions = ["responses > 1", "allowed"]
    if most is not None:
        columns.append("row_number() over (partition by prompt_id, allowed order by key, sample_id) as place")
        if most == "original":
            columns.append("count(*) filter (original) over (partition by prompt_id) as originals")
        conditions.append(f"place <= {'originals' if most == 'original' else most}")
    return f"select * from (select *, {', '.join(columns)} from parted where may) where {' and '.join(conditions)}"


def _rank_in_memory(
    spill: Spill,
    section: SelectorSection,
    score: ScoreSection,
    subset: Subset,
    counts: Counts,
    features: Features | None,
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Create table `ranked` in the order that a selector returns for all candidates; see `_rank`.

    Return the samples left out, by reason, and the selector's warnings.
    """
    selector = selector_of(section)
    assert selector.order is not None
    stored = ", ".join(name for name in POOL_COLUMNS if name not in ("sample_id", "prompt_id"))
    frame = spill.frame(
        f"select {ID}, replace(prompt_id::varchar, '-', '') as prompt_id, {stored}, may, "
        f"{_ranked_columns(subset)} from parted order by sample_id"
    )
    # An order that is split among strata must be whole, except where the selector orders each of them.
    limit = _most_samples(spill, subset, counts) if selector.vectors or not subset.stratify else None
    highest_first, may = method_of(score).highest_first, frame["may"].to_numpy()
    ranked_by = "score" if subset.standardise is None else "z"
    values = frame[ranked_by].fill_null(float("nan")).to_numpy()
    pool = frame.select(POOL_COLUMNS)
    found = Candidates(pool, values, may, highest_first, limit, features)
    if selector.vectors and subset.stratify:
        choice = order_by_stratum(section, found, frame["stratum"].to_numpy())
    else:
        choice = selector.order(section, found)
    spill.run(f"create table ranked as select sample_id, {_ranked_columns(subset)} from parted limit 0")
    columns = ["sample_id", "score", "source", "response_tokens", "weight", "low_signal", "marked_right", "stratum"]
    ranked = frame.select(*columns, *([] if subset.standardise is None else OF_Z))[choice.order]
    statement = "insert into ranked select * replace (sample_id::uuid as sample_id) from frame"
    spill.load(statement, [ranked], in_order=True)
    return choice.left_out, choice.warnings


def _most_samples(spill: Spill, subset: Subset, counts: Counts) -> int:
    """Return how much of an order suffices to fill a budget: one sample more than fits, if it counts tokens."""
    limit = samples_of(subset.budget, counts.eligible)
    if limit is not None:
        return limit
    shortest = (
        "select sum(coalesce(response_tokens, 0)) over (order by coalesce(response_tokens, 0), sample_id "
        "rows unbounded preceding) as together from pool where eligible"
    )
    fit: int = spill.row(f"select count(*) from ({shortest}) where together <= {subset.budget.tokens}")[0]
    return fit + 1


@dataclass(frozen=True)
class _Facts:
    """Fields of `Selection` that are known once its candidates are ranked."""

    funnel: tuple[Stage, ...]
    duplicates: int
    filtered: Mapping[str, int]
    left_out: Mapping[str, int]
    held_out: int | None
    warnings: Sequence[str]
    standardised_sources: int | None
    flat_sources: int


class _Order:
    """Streams table `ranked` and selects the rows that fit the budget.

    Attributes:
        whole: whether the budget is larger than all rows.
        facts: what is known of the selection before.
    """

    def __init__(
        self, spill: Spill, subset: Subset, counts: Counts, sizes: Sequence[int], begin: int, facts: _Facts
    ) -> None:
        self._spill, self._sizes = spill, sizes
        self.facts = facts
        named = ", ".join([*CHOSEN_FACTS, *([] if subset.standardise is None else OF_Z)])
        columns = f"select {ID}, {named}, weight, stratum::bigint as stratum from ranked"
        # DuckDB returns the rows of a table that was created in order in that order.
        self._queries = [columns]
        if begin:
            # A budget that reaches past the end continues upwards from the start of the band.
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
