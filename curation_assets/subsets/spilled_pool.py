"""Hold a subset's pool in tables on disk (`curation_resources.storage.spill`): one row per sample.

Row-wise columns are computed on arrival, by the same code as in memory. Ids become 128-bit numbers that sort like their
texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curation_assets.config.settings import Subset
from curation_assets.methods.method import ScoreSection
from curation_assets.methods.random_draws import uniform
from curation_assets.methods.registry import method_of
from curation_assets.methods.selectors.band import Band
from curation_assets.methods.selectors.candidates import Candidates
from curation_assets.methods.selectors.per_prompt import PerPrompt, group_key, is_original, of_variant
from curation_assets.methods.selectors.random import Random
from curation_assets.methods.selectors.top import Top
from curation_assets.quality.filtered_pool import refuse_unknown
from curation_assets.subsets.eligibility import eligible
from curation_resources.storage.spill import Spill

READ_ROWS = 250_000
"""Rows of scores in memory at a time, in addition to those that Polars prefetches."""

COLUMNS = {
    "sample_id": "uuid",
    "prompt_id": "uuid",
    "shard": "varchar",
    "row": "bigint",
    "candidate": "integer",
    "source": "varchar",
    "domain": "varchar",
    "generator": "varchar",
    "n_steps": "integer",
    "response_tokens": "integer",
    "answer_norm": "float",
    "score": "double",
    "eligible": "boolean",
    "may": "boolean",
    "key": "double",
    "allowed": "boolean",
    "original": "boolean",
    "held_out": "boolean",
}
"""Columns of table `pool`: those of `sample_scores`; `eligible`; `may` (eligible with a score); `key`, lowest
first; for GRAPE's variants `allowed` (may be taken at all) and `original` (was in the original pool); `held_out` (its
prompt is in a validation set)."""

ID = "replace(sample_id::varchar, '-', '') as sample_id"
"""SQL expression for the text of an id."""

SpilledSelector = Top | Band | Random | PerPrompt


def pool_on_disk(
    spill: Spill,
    arrived: pl.LazyFrame,
    score: ScoreSection,
    selector: SpilledSelector,
    subset: Subset,
    prompts: Sequence[str] | None,
) -> int:
    """Fill table `pool`; return how many rows were copies of others.

    Args:
        spill: the spill database.
        arrived: rows of `sample_scores` with the score in column `score`, including exact duplicates.
        score: the score's configuration.
        selector: the selector.
        subset: the subset, whose filters determine eligibility.
        prompts: prompts of validation sets.
    """
    grouped = isinstance(selector, PerPrompt)
    # Prompt ids take a fifth of all bytes, and few selectors need them.
    wanted = [name for name in arrived.collect_schema() if name != "prompt_id" or grouped or prompts is not None]

    def marked() -> Iterator[pl.DataFrame]:
        for rows in arrived.select(wanted).collect_batches(
            chunk_size=READ_ROWS, maintain_order=False, engine="streaming"
        ):
            yield _marked(rows, score, selector, subset, prompts)

    kept = {name for name in COLUMNS if name != "prompt_id" or grouped} - ({"domain", "generator"} - {*subset.stratify})
    columns = {name: kind for name, kind in COLUMNS.items() if name in kept}
    spill.run(f"create table pool ({', '.join(f'{name} {kind}' for name, kind in columns.items())})")
    values = ", ".join(f"{name}::{kind}" for name, kind in columns.items())
    spill.load(f"insert into pool select {values} from frame", marked())
    return _without_copies(spill)


def _marked(
    rows: pl.DataFrame,
    score: ScoreSection,
    selector: SpilledSelector,
    subset: Subset,
    prompts: Sequence[str] | None,
) -> pl.DataFrame:
    """Add the columns of table `pool` to rows."""
    may_pass = rows.select(eligible(score, subset.filters)).to_series()
    values = rows["score"].fill_null(float("nan")).to_numpy()
    found = Candidates(rows, values, may_pass.to_numpy() & np.isfinite(values), method_of(score).highest_first)
    key = _key(selector, found)
    marks: dict[str, Any] = {"eligible": may_pass, "may": found.may, "allowed": found.may, "original": found.may}
    if isinstance(selector, PerPrompt):
        marks["allowed"] = of_variant(selector, found, np.arange(len(rows)), key)
        marks["original"] = is_original(selector, rows)
    held_out = pl.lit(value=False) if prompts is None else pl.col("prompt_id").is_in(list(prompts))
    return rows.with_columns(
        held_out=held_out,
        answer_norm=pl.col("answer_norm").fill_nan(None),
        # Turn -0.0 into 0.0, so that both sort as equal.
        key=pl.Series(key + 0.0),
        **{name: pl.Series(name, mark) for name, mark in marks.items()},
    )


def _key(selector: SpilledSelector, found: Candidates) -> NDArray[np.float64]:
    """Return the sort key of rows, lowest first [n]."""
    if isinstance(selector, PerPrompt):
        return group_key(selector, found, np.arange(len(found.pool)))
    if isinstance(selector, Random):
        drawn: NDArray[np.float64] = uniform(found.pool["sample_id"], selector.seed).to_numpy()
        return drawn
    if isinstance(selector, Band):
        highest_first = selector.band != "low"
    else:
        highest_first = found.highest_first if selector.order is None else selector.order == "highest"
    return -found.score if highest_first else found.score


def _without_copies(spill: Spill) -> int:
    """Keep one row per sample_id: the lowest shard, then row, then candidate. Return the number of rows removed."""
    spill.run("create table copied as select sample_id from pool group by sample_id having count(*) > 1")
    spill.run(
        "create table copies as select rowid as place from pool semi join copied using (sample_id) "
        "qualify row_number() over (partition by sample_id order by shard, row, candidate) > 1"
    )
    spill.run("delete from pool where rowid in (select place from copies)")
    count: int = spill.row("select count(*) from copies")[0]
    return count


def without_filtered_on_disk(spill: Spill, known: pl.LazyFrame | None) -> dict[str, int]:
    """Remove samples excluded by the corpus' filters from table `pool`; return their number by reason.

    Args:
        spill: the spill database.
        known: `sample_id` and `reason` of table `pool` of the warehouse; None without filters.

    Raises:
        QualityError: the filters have not been applied to some of the samples.
    """
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
