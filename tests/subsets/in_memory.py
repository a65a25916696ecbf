"""Choosing in memory with numpy: the twin that `subsets.choose_in_duckdb` is held against, row by row.

Its own selectors are held against loops over rows in `test_selectors`.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curation_assets.config.settings import Budget, Stratum, Subset, Threshold
from curation_assets.corpus.duplicates import Pool
from curation_assets.methods.combined import Combination
from curation_assets.methods.method import ScoreSection
from curation_assets.methods.random_draws import uniform
from curation_assets.methods.registry import method_of
from curation_assets.methods.selectors.band import MIDDLE_BEGINS, Band
from curation_assets.methods.selectors.candidates import (
    Candidates,
    Choice,
    Features,
    Mask,
    Positions,
    SelectorSection,
)
from curation_assets.methods.selectors.per_prompt import PerPrompt
from curation_assets.methods.selectors.random import Random
from curation_assets.methods.selectors.registry import order_by_stratum, selector_of
from curation_assets.methods.selectors.top import Top
from curation_assets.subsets.budget import BINS, STRATUM_LENGTHS, Prefix, Shares, samples_of
from curation_assets.subsets.eligibility import LOW_SIGNAL_PERCENT, eligible
from curation_assets.subsets.facts import (
    CHOSEN_FACTS,
    POINTS,
    POOL_FACTS,
    Selection,
    Summary,
    Summing,
    subset_digest,
    subset_rows,
)
from curation_assets.subsets.thresholds import Stage


@dataclass(frozen=True)
class InMemory:
    """Table `subset`, the pool with its score and marks of eligible and selected rows, and the facts."""

    rows: pl.DataFrame
    pool: pl.DataFrame
    facts: Selection


def choose(
    scored: Pool,
    score: ScoreSection,
    selector: SelectorSection,
    subset: Subset,
    features: Features | None = None,
    filtered: Mapping[str, int] | None = None,
    columns: Mapping[str, str] | None = None,
) -> InMemory:
    """Choose a subset of scored samples, in memory.

    Args:
        scored: rows of `sample_scores` (POOL_COLUMNS), each sample once, with the score in column `score`.
        score: the score's configuration.
        selector: the selector.
        subset: filters, strata, budget.
        features: embeddings, for selectors that need them.
        filtered: samples removed from the pool by the corpus' filters, by reason.
        columns: the column of the rows with each score that thresholds and combinations read.
    """
    pool = scored.rows
    right = [mark if mark is not None else other for mark, other in pool.select("correct", "verified").iter_rows()]
    may_pass = pool.select(eligible(score, subset.filters)).to_series().to_numpy().copy()
    funnel = [stage_of(subset, "pool", pool, right, np.ones(len(pool), dtype=np.bool_))]
    by_row = list(subset.filters.model_dump(exclude_defaults=True, exclude={"scores"}))
    by_row += [f"min_steps of {score.name}"] if score.min_steps else []
    if may_pass.sum() < len(pool):
        funnel.append(stage_of(subset, f"filters ({', '.join(by_row)})", pool, right, may_pass))
    for threshold in subset.filters.scores:
        known, passing = passing_rows(pool, may_pass, threshold, columns or {})
        no_value = int(may_pass.sum()) - len(known)
        may_pass = np.isin(np.arange(len(pool)), passing)
        funnel.append(stage_of(subset, threshold.title, pool, right, may_pass, no_value))
    if isinstance(subset.score, Combination):
        combined = combined_values(pool, may_pass, subset.score, columns or {})
        pool = pool.with_columns(score=pl.Series([combined.get(row) for row in range(len(pool))], dtype=pl.Float64))
    values = pool["score"].fill_null(float("nan")).to_numpy()
    sources, flat = None, 0
    if subset.standardise is not None:
        values, (sources, flat) = within_sources(pool["source"].to_list(), values, may_pass)
        pool = pool.with_columns(z=pl.Series(values) + 0.0)
    by_vectors = selector_of(selector).vectors
    limit = most_samples(subset.budget, pool, may_pass) if by_vectors or not subset.stratify else None
    may, highest_first = may_pass & np.isfinite(values), method_of(score).highest_first
    found = Candidates(pool, values, may, highest_first, limit, features)
    if by_vectors and subset.stratify:
        choice = order_by_stratum(selector, found, strata(pool, may_pass, subset.stratify))
    else:
        choice = order_by(selector, found, int(may_pass.sum()))
    taken = take_within(choice.order, subset.budget, pool, may_pass, subset.stratify)
    selected = np.zeros(len(pool), dtype=np.bool_)
    selected[taken.positions] = True
    marks = {"eligible": may_pass, "low_signal": low_signal(pool), "selected": selected}
    pool = pool.with_columns(
        *(pl.Series(name, mark) for name, mark in marks.items()), pl.Series("marked_right", right, dtype=pl.Boolean)
    )
    rows = subset_rows(pool[taken.positions], score.name)
    held_out = (
        None if features is None or features.prompts is None else int(pool["prompt_id"].is_in(features.prompts()).sum())
    )
    scored_rows = may_pass & np.isfinite(pool["score"].fill_null(float("nan")).to_numpy())
    if scored_rows.sum() < funnel[-1].samples:
        funnel.append(stage_of(subset, f"has {score.name}", pool, right, scored_rows))
    funnel.append(stage_of(subset, "selected", pool, right, selected))
    facts = Selection(
        *(summarise(pool), subset_digest(rows), scored.duplicates, dict(filtered or {}), choice.left_out, taken.whole),
        *(held_out, ()),
        standardised_sources=sources,
        flat_sources=flat,
        funnel=tuple(funnel),
    )
    return InMemory(rows, pool, facts)


def stage_of(
    subset: Subset, name: str, pool: pl.DataFrame, right: Sequence[bool | None], left: Mask, no_value: int = 0
) -> Stage:
    """The stage that leaves these rows; a stage of row filters has any name."""
    rows = np.flatnonzero(left).tolist()
    marks = [right[row] for row in rows if right[row] is not None]
    tokens = sum(pool["response_tokens"][row] or 0 for row in rows)
    return Stage(subset.name, name, len(rows), tokens, len(marks), sum(map(bool, marks)), no_value)


def passing_rows(
    pool: pl.DataFrame, may_pass: Mask, threshold: Threshold, columns: Mapping[str, str]
) -> tuple[list[int], list[int]]:
    """The eligible rows that have a threshold's score, and those of them that pass it."""
    if isinstance(threshold.score, str):
        values = dict(enumerate(pool[columns[threshold.score]].to_list()))
    else:
        values = dict(combined_values(pool, may_pass, threshold.score, columns))
    known = [
        row for row in np.flatnonzero(may_pass).tolist() if values.get(row) is not None and math.isfinite(values[row])
    ]
    share = threshold.top if threshold.top is not None else threshold.bottom
    if share is None:
        least = -math.inf if threshold.at_least is None else threshold.at_least
        most = math.inf if threshold.at_most is None else threshold.at_most
        return known, [row for row in known if least <= values[row] <= most]
    sign = -1.0 if threshold.top is not None else 1.0
    passing = []
    for rows in groups_of(pool, known, threshold.within).values():
        ordered = sorted(rows, key=lambda row: (sign * values[row], pool["sample_id"][row]))
        passing += ordered[: math.ceil(Fraction(str(share)) * len(rows))]
    return known, passing


def groups_of(pool: pl.DataFrame, rows: Sequence[int], within: str) -> dict[object, list[int]]:
    """Rows by their source, domain or prompt, or all in one group."""
    column = {"pool": None, "source": "source", "domain": "domain", "prompt": "prompt_id"}[within]
    found: dict[object, list[int]] = {}
    for row in rows:
        found.setdefault(None if column is None else pool[column][row], []).append(row)
    return found


def combined_values(
    pool: pl.DataFrame, may_pass: Mask, combination: Combination, columns: Mapping[str, str]
) -> dict[int, float]:
    """The combined score of the eligible rows that have all of its parts."""
    parts = {name: pool[columns[name]].to_list() for name in combination.combine}
    rows = [
        row
        for row in np.flatnonzero(may_pass).tolist()
        if all(values[row] is not None and math.isfinite(values[row]) for values in parts.values())
    ]
    found: dict[int, float] = {}
    for group in groups_of(pool, rows, combination.within).values():
        terms = {name: [values[row] for row in group] for name, values in parts.items()}
        if combination.by == "rank":
            terms = {
                name: [(1 + sum(o < v for o in own) + (sum(o == v for o in own) - 1) / 2) / len(own) for v in own]
                for name, own in terms.items()
            }
        if combination.by == "zscore":
            everyone = np.ones(len(group), dtype=np.bool_)
            terms = {
                name: within_sources([None] * len(own), np.array(own), everyone)[0].tolist()
                for name, own in terms.items()
            }
        weights = combination.combine
        total = math.fsum(map(abs, weights.values())) if combination.by == "rank" else 1.0
        for place, row in enumerate(group):
            values = {name: own[place] for name, own in terms.items()}
            if combination.by == "product":
                found[row] = functools.reduce(operator.mul, [values[name] ** weights[name] for name in weights])
            else:
                found[row] = functools.reduce(operator.add, [weights[name] * values[name] for name in weights]) / total
    return found


def within_sources(
    sources: list[str | None], scores: NDArray[np.float64], may_pass: Mask
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Return z of each score within its source, NaN where there is none; the number of sources, and of flat ones."""
    z, flat = np.full(len(scores), np.nan), 0
    own: dict[str | None, list[int]] = {}
    for place in np.flatnonzero(may_pass & np.isfinite(scores)).tolist():
        own.setdefault(sources[place], []).append(place)
    for places in own.values():
        values = [float(scores[place]) for place in places]
        mean = float(sum(map(Fraction, values)) / len(values))
        squares = float(sum(Fraction((value - mean) * (value - mean)) for value in values))
        deviation = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else 0.0
        flat += deviation == 0.0
        for place, value in zip(places, values, strict=True):
            z[place] = (value - mean) / deviation if deviation else 0.0
    return z, (len(own), flat)


def order_by(section: SelectorSection, found: Candidates, eligible_rows: int | None = None) -> Choice:
    """The order in which a selector takes candidates, of which all rows of `found` are eligible by default."""
    if isinstance(section, Top):
        return Choice(found.ranked(found.highest_first if section.order is None else section.order == "highest"))
    if isinstance(section, Band):
        return _band(section, found, eligible_rows)
    if isinstance(section, Random):
        places = np.flatnonzero(found.may)
        drawn = uniform(found.pool["sample_id"].gather(places), section.seed).to_numpy()
        return Choice(places[ascending(drawn, found.pool["sample_id"], places, found.limit)])
    if isinstance(section, PerPrompt):
        return _per_prompt(section, found)
    order = selector_of(section).order
    assert order is not None
    return order(section, found)


def _band(selector: Band, found: Candidates, eligible_rows: int | None) -> Choice:
    if selector.band != "middle":
        return Choice(found.ranked(selector.band == "high"))
    places = np.flatnonzero(found.may)
    descending = places[ascending(-found.score[places], found.pool["sample_id"], places)]
    count = len(descending) if eligible_rows is None else eligible_rows
    begin = min(int(MIDDLE_BEGINS * count), len(descending))
    return Choice(np.concatenate([descending[begin:], descending[:begin][::-1]]))


def _per_prompt(selector: PerPrompt, found: Candidates) -> Choice:
    places = np.flatnonzero(found.may)
    prompts = group_numbers(found.pool["prompt_id"])[places]
    sizes = np.bincount(prompts)
    several = sizes[prompts] > 1
    left_out = {"single_response": int(len(places) - several.sum())}
    places, prompts = places[several], prompts[several]
    key = group_key(selector, found, places)
    chosen = _within_groups(selector, found, places, prompts, key)
    if selector.variant != "full":
        left_out["not_of_its_prompt"] = len(places) - len(chosen)
    # A budget takes the best prompts by what chose within them.
    own = places[chosen]
    order = own[ascending(key[chosen], found.pool["sample_id"], own, found.limit)]
    return Choice(order, {reason: count for reason, count in left_out.items() if count})


def group_key(selector: PerPrompt, found: Candidates, places: Positions) -> NDArray[np.float64]:
    """Return the key by which a variant chooses within and among prompts, lowest first; NaN: never chosen [n]."""
    if selector.variant == "random_1":
        return uniform(found.pool["sample_id"].gather(places), selector.seed).to_numpy()
    if selector.variant == "reward":
        reward: NDArray[np.float64] = found.pool["reward"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        return -reward[places]
    return found.score[places] if selector.variant == "farthest" else -found.score[places]


def _within_groups(
    selector: PerPrompt, found: Candidates, places: Positions, prompts: NDArray[np.int64], key: NDArray[np.float64]
) -> Positions:
    """Return which of the grouped samples a variant takes, as indices into them."""
    pool = found.pool
    indices = np.flatnonzero(of_variant(selector, found, places, key))
    if takes_all(selector):
        return indices
    if takes_one(selector):
        return _first_of_groups(key, pool["sample_id"], places, prompts, indices)
    order = indices[ascending(key[indices], pool["sample_id"], places[indices], groups=prompts[indices])]
    grouped = prompts[order]
    starts = np.flatnonzero(np.insert(grouped[1:] != grouped[:-1], 0, True)) if len(order) else np.empty(0, np.int64)
    place_in_group = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    most: Any = selector.k
    if selector.k == "original":
        most = np.bincount(prompts, weights=is_original(selector, pool)[places])[grouped]
    taken: Positions = order[place_in_group < most]
    return taken


def _first_of_groups(
    key: NDArray[np.float64], sample_ids: pl.Series, places: Positions, prompts: NDArray[np.int64], indices: Positions
) -> Positions:
    """Return the index with the lowest key of each group, ties broken by sample_id, without sorting."""
    if not len(indices):
        return indices
    own, groups = key[indices], prompts[indices]
    lowest = np.full(int(groups.max()) + 1, np.inf)
    np.minimum.at(lowest, groups, own)
    best: Positions = indices[own == lowest[groups]]
    ties = np.bincount(prompts[best])[prompts[best]] > 1
    if not ties.any():
        return best
    tied = best[ties]
    names = pl.DataFrame({"index": tied, "group": prompts[tied], "sample_id": sample_ids.gather(places[tied])})
    firsts: Positions = names.sort("sample_id").unique("group", keep="first")["index"].to_numpy()
    return np.concatenate([best[~ties], firsts])


def of_variant(selector: PerPrompt, found: Candidates, places: Positions, key: NDArray[np.float64]) -> Mask:
    """Return which samples a variant may take, given their `group_key` [n]."""
    if selector.variant in ("subset", "closest_1"):
        return is_original(selector, found.pool)[places]
    if selector.variant == "long_cot":
        right = found.pool.select(pl.coalesce("correct", "verified").fill_null(value=False)).to_series()
        mask: Mask = right.to_numpy()[places]
        return mask
    return np.isfinite(key) if selector.variant == "reward" else np.ones(len(places), dtype=np.bool_)


def takes_all(selector: PerPrompt) -> bool:
    """Return whether a variant takes every allowed sample of a prompt."""
    return selector.variant in ("full", "subset")


def takes_one(selector: PerPrompt) -> bool:
    """Return whether a variant takes one sample of a prompt."""
    return selector.variant in ("closest_1", "random_1") or selector.k == 1


def is_original(selector: PerPrompt, pool: pl.DataFrame) -> Mask:
    """Return which rows of the pool were in it before others were added [N]."""
    original = selector.original
    if original is None:
        return np.zeros(len(pool), dtype=np.bool_)
    named = pl.col("source").is_in(original.sources) | pl.col("generator").is_in(original.generators)
    mask: Mask = pool.select(named.fill_null(value=False)).to_series().to_numpy()
    return mask


def ascending(
    key: NDArray[np.float64],
    sample_ids: pl.Series,
    places: Positions,
    limit: int | None = None,
    groups: NDArray[np.int64] | None = None,
) -> Positions:
    """Return indices that sort a key within groups, ties broken by sample_id.

    Args:
        key: the key [n], without NaN.
        sample_ids: ids of the whole pool.
        places: position in the pool of each of the n.
        limit: return only this many.
        groups: number of each one's group [n]; groups are sorted by number.
    """
    if limit is not None and groups is None and 0 < limit < len(key) // 2:
        few = np.flatnonzero(key <= np.partition(key, limit - 1)[limit - 1])
        return few[ascending(key[few], sample_ids, places[few])][:limit]
    order = np.argsort(key) if groups is None else np.lexsort((key, groups))
    ordered = key[order]
    same = ordered[1:] == ordered[:-1]
    if groups is not None:
        same &= groups[order[1:]] == groups[order[:-1]]
    if same.any():
        # Runs of ties keep their places, and within them the ids decide.
        tied = np.flatnonzero(np.append(same, False) | np.insert(same, 0, False))
        run = np.cumsum(~np.insert(same, 0, False))[tied]
        names = pl.DataFrame({"run": run, "sample_id": sample_ids.gather(places[order[tied]])})
        order[tied] = order[tied][names.select(pl.arg_sort_by("run", "sample_id")).to_series().to_numpy()]
    return order.astype(np.int64, copy=False)


def group_numbers(keys: pl.Series) -> NDArray[np.int64]:
    """Number the distinct texts from 0 on; texts count as equal if two 64-bit hashes are."""
    first, second = keys.hash(seed=0).to_numpy(), keys.hash(seed=1).to_numpy()
    order = np.argsort(first)
    if (np.diff(first[order]) == 0)[np.diff(second[order]) != 0].any():
        # Two texts of one hash lie among one another: both hashes have to sort.
        order = np.lexsort((second, first))
    begins = np.insert((np.diff(first[order]) != 0) | (np.diff(second[order]) != 0), 0, False)
    numbers = np.empty(len(keys), dtype=np.int64)
    numbers[order] = np.cumsum(begins)
    return numbers


def low_signal(pool: pl.DataFrame) -> NDArray[np.bool_]:
    """Return which answers have the lowest percent of gradient norms [N], ties broken by sample_id."""
    norms = pool["answer_norm"].fill_null(float("nan")).to_numpy().astype(np.float64)
    places = np.flatnonzero(~np.isnan(norms))
    count = len(places) * LOW_SIGNAL_PERCENT // 100
    low = np.zeros(len(pool), dtype=np.bool_)
    low[places[ascending(norms[places], pool["sample_id"], places, count)[:count]]] = True
    return low


class Taken(NamedTuple):
    """The positions taken, in order; `whole` means that there were no more although the budget is larger."""

    positions: Positions
    whole: bool


def most_samples(budget: Budget, pool: pl.DataFrame, eligible: NDArray[np.bool_]) -> int:
    """Return how much of an order suffices to fill a budget: one sample more than fits, if it counts tokens."""
    limit = samples_of(budget, int(eligible.sum()))
    if limit is not None:
        return limit
    assert budget.tokens is not None
    shortest = np.sort(_tokens(pool)[eligible])
    return int(np.searchsorted(np.cumsum(shortest), budget.tokens, side="right")) + 1


def _tokens(pool: pl.DataFrame) -> NDArray[np.int64]:
    tokens: NDArray[np.int64] = pool["response_tokens"].cast(pl.Int64).fill_null(0).to_numpy()
    return tokens


def take_within(
    order: Positions,
    budget: Budget,
    pool: pl.DataFrame,
    eligible: NDArray[np.bool_],
    stratify: Sequence[Stratum] = (),
) -> Taken:
    """Take the longest prefix of an order of choice within a budget; with strata, take each stratum's share.

    Args:
        order: positions in the pool, best first; complete, or (per stratum) at least `most_samples` long.
        budget: see `samples_of`.
        pool: rows with `response_tokens` and the columns of the strata.
        eligible: rows of the pool that pass filters and `min_steps`, with or without a score [N].
        stratify: the columns that define the strata.
    """
    limit = samples_of(budget, int(eligible.sum()))
    if limit is not None:
        weights = np.ones(len(pool), dtype=np.int64)
    else:
        assert budget.tokens is not None
        limit, weights = budget.tokens, _tokens(pool)
    if int(weights[order].sum()) < limit:
        return Taken(order, whole=True)
    own = weights[order]
    if not stratify:
        return Taken(order[Prefix(limit).take(own)], whole=False)
    stratum = strata(pool, eligible, stratify)
    # Floating-point sums are exact up to 2**53.
    sizes = np.bincount(stratum[eligible], weights=weights[eligible]).astype(np.int64)
    first = Shares(limit, sizes.tolist())
    taken = first.take(own, stratum[order])
    taken[~taken] = Prefix(first.room()).take(own[~taken])
    return Taken(order[taken], whole=False)


def strata(pool: pl.DataFrame, eligible: NDArray[np.bool_], stratify: Sequence[Stratum]) -> NDArray[np.int64]:
    """Return the number of each row's stratum [N], in the order of their names; deciles are of eligible rows."""
    among = pl.Series("eligible", eligible)
    parts = [
        (_decile(STRATUM_LENGTHS[name], among) if name in STRATUM_LENGTHS else pl.col(name).fill_null("(none)")).alias(
            f"part_{place}"
        )
        for place, name in enumerate(stratify)
    ]
    numbers = pool.select(parts).select(pl.struct(pl.all()).rank("dense") - 1).to_series()
    return numbers.cast(pl.Int64).to_numpy()


def _decile(column: str, eligible: pl.Series) -> pl.Expr:
    """Return the decile of a column among eligible rows; equal values share a decile."""
    number = pl.when(eligible).then(pl.col(column))
    tenth = (number.rank("min") - 1) * BINS // pl.max_horizontal(number.count(), 1)
    return tenth.fill_null(0).cast(pl.Int64)


def summarise(pool: pl.DataFrame) -> Summary:
    """Return the summary of a pool in memory.

    Args:
        pool: POOL_FACTS, `sample_id`, `low_signal`, and whether a row is `selected`.
    """
    facts = pool.select(POOL_FACTS)
    scored = pool.select("sample_id", "response_tokens", "score").filter(pl.col("score").is_finite())
    points = scored.bottom_k(POINTS, by="sample_id").sort("sample_id")
    summing = Summing(lambda: [facts], points.select("response_tokens", "score"))
    summing.choose(pool.select(*CHOSEN_FACTS, "selected").filter("selected"))
    return summing.summary()
