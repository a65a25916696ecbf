"""Implement each kind of selector: from the eligible pool to an order of choice, best first.

An order contains everything that a selector would take, so that any budget is a prefix of it. All selectors are
deterministic, break ties by sample_id, and do not depend on the order of rows. They work on positions: of a million
samples, only the chosen ones are ever copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curation_assets.methods.random_draws import uniform
from curation_assets.methods.selector import S2L, Band, KCenter, PerPrompt, Random, RoundRobin, Tagcos, Temp, Top
from curation_assets.subsets.features import Features
from curation_assets.subsets.k_center import k_center
from curation_assets.subsets.round_robin import round_robin
from curation_assets.subsets.s2l import s2l
from curation_assets.subsets.tagcos import tagcos
from curation_assets.subsets.temp import difficult, losses_of, temp

MIDDLE_BEGINS = Fraction("0.33")
"""Fraction of the descending order that the middle band skips."""

Positions = NDArray[np.int64]
Mask = NDArray[np.bool_]


BY_VECTORS = (KCenter, RoundRobin, S2L, Temp, Tagcos)
"""Selectors that compare samples with each other or with many others: ordering only a prefix saves most of the cost."""


@dataclass(frozen=True)
class Candidates:
    """The samples that may be chosen.

    Attributes:
        pool: the columns of `sample_scores` other than scores, one row per sample.
        score: score of each row [N].
        may: rows that are eligible and have a finite score [N].
        eligible: number of eligible rows, with or without a score; None: all that may be chosen.
        highest_first: whether high scores are best for this method.
        limit: maximum number wanted, if known; an order may end there.
        features: embeddings, if the method has any.
    """

    pool: pl.DataFrame
    score: NDArray[np.float64]
    may: Mask
    highest_first: bool = True
    limit: int | None = None
    features: Features | None = None
    eligible: int | None = None

    def ranked(self, highest_first: bool, among: Positions | None = None) -> Positions:
        """Return positions sorted by score, ties broken by sample_id."""
        places = np.flatnonzero(self.may) if among is None else among
        key = -self.score[places] if highest_first else self.score[places]
        return places[ascending(key, self.pool["sample_id"], places, self.limit)]


@dataclass(frozen=True)
class Choice:
    """An order of choice.

    Attributes:
        order: positions in the pool, best first.
        left_out: eligible samples that the selector takes under no budget, by reason.
    """

    order: Positions
    left_out: dict[str, int] = field(default_factory=dict)


def order_by(selector: Any, candidates: Candidates) -> Choice:
    """Return the order in which a selector (`curation_assets.methods.selector`) takes samples."""
    return _SELECTORS[type(selector)](selector, candidates)


def order_by_stratum(selector: Any, candidates: Candidates, stratum: NDArray[np.int64]) -> Choice:
    """Return the order in which a selector takes samples when it chooses within each stratum [N] separately.

    The first sample of every stratum comes first, then the second of each, so a remainder is spread over the strata.
    """
    ranks, orders, left_out = [], [], dict[str, int]()
    for number in np.unique(stratum[candidates.may]):
        own = order_by(selector, replace(candidates, may=candidates.may & (stratum == number)))
        orders.append(own.order)
        ranks.append(np.arange(len(own.order)))
        for reason, count in own.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + count
    if not orders:
        return Choice(np.empty(0, dtype=np.int64))
    return Choice(np.concatenate(orders)[np.argsort(np.concatenate(ranks), kind="stable")], left_out)


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
        # Runs of ties keep their places; within a run, ids decide.
        tied = np.flatnonzero(np.append(same, False) | np.insert(same, 0, False))
        run = np.cumsum(~np.insert(same, 0, False))[tied]
        names = pl.DataFrame({"run": run, "sample_id": sample_ids.gather(places[order[tied]])})
        order[tied] = order[tied][names.select(pl.arg_sort_by("run", "sample_id")).to_series().to_numpy()]
    return order.astype(np.int64, copy=False)


def _top(selector: Top, found: Candidates) -> Choice:
    return Choice(found.ranked(found.highest_first if selector.order is None else selector.order == "highest"))


def _band(selector: Band, found: Candidates) -> Choice:
    if selector.band != "middle":
        return Choice(found.ranked(selector.band == "high"))
    places = np.flatnonzero(found.may)
    descending = places[ascending(-found.score[places], found.pool["sample_id"], places)]
    begin = middle_begins(len(descending) if found.eligible is None else found.eligible, len(descending))
    # A budget that reaches past the end continues upwards from the start of the band.
    return Choice(np.concatenate([descending[begin:], descending[:begin][::-1]]))


def middle_begins(eligible: int, ranked: int) -> int:
    """Return the start of the middle band in the descending order.

    Fractions refer to the eligible samples, as budgets do: samples without a score do not move the band.
    """
    return min(int(MIDDLE_BEGINS * eligible), ranked)


def _random(selector: Random, found: Candidates) -> Choice:
    places = np.flatnonzero(found.may)
    drawn = uniform(found.pool["sample_id"].gather(places), selector.seed).to_numpy()
    return Choice(places[ascending(drawn, found.pool["sample_id"], places, found.limit)])


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
    # The same key orders prompts among each other when the budget is filled.
    own = places[chosen]
    order = own[ascending(key[chosen], found.pool["sample_id"], own, found.limit)]
    return Choice(order, {reason: count for reason, count in left_out.items() if count})


def group_numbers(keys: pl.Series) -> NDArray[np.int64]:
    """Number the distinct texts from 0 on; texts count as equal if two 64-bit hashes are."""
    first, second = keys.hash(seed=0).to_numpy(), keys.hash(seed=1).to_numpy()
    order = np.argsort(first)
    if (np.diff(first[order]) == 0)[np.diff(second[order]) != 0].any():
        # Texts that share the first hash are interleaved: sort by both hashes.
        order = np.lexsort((second, first))
    begins = np.insert((np.diff(first[order]) != 0) | (np.diff(second[order]) != 0), 0, False)
    numbers = np.empty(len(keys), dtype=np.int64)
    numbers[order] = np.cumsum(begins)
    return numbers


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


def _features(kind: str, found: Candidates) -> Features:
    # Settings reject a selector whose score's method lacks what it needs.
    assert found.features is not None, f"selector {kind} without embeddings"
    return found.features


def _round_robin(selector: RoundRobin, found: Candidates) -> Choice:
    features, places = _features(selector.kind, found), np.flatnonzero(found.may)
    assert features.validation is not None, "round_robin without validation samples"
    if not len(places):
        return Choice(places)
    ids = found.pool["sample_id"].gather(places)
    limit = len(places) if found.limit is None else found.limit
    order = round_robin(
        features.vectors(ids), features.validation(), limit, _tie_rank(ids), selector.parity == "as_coded"
    )
    return Choice(places[order])


def _k_center(selector: KCenter, found: Candidates) -> Choice:
    features, places = _features(selector.kind, found), np.flatnonzero(found.may)
    if not len(places):
        return Choice(places)
    ids = found.pool["sample_id"].gather(places)
    first = int(ascending(uniform(ids, selector.seed).to_numpy(), ids, np.arange(len(ids)), 1)[0])
    limit = len(places) if found.limit is None else found.limit
    return Choice(places[k_center(features.vectors(ids), limit, first, _tie_rank(ids))])


def _s2l(selector: S2L, found: Candidates) -> Choice:
    features, places = _features(selector.kind, found), np.flatnonzero(found.may)
    if not len(places):
        return Choice(places)
    own = found.pool[places]
    sources = own["source"].fill_null("").rank("dense").cast(pl.Int64).to_numpy()
    limit = len(places) if found.limit is None else found.limit
    vectors = features.vectors(own["sample_id"])
    return Choice(places[s2l(vectors, own["sample_id"], sources, limit, selector.clusters, selector.seed)])


def _temp(selector: Temp, found: Candidates) -> Choice:
    features, places = _features(selector.kind, found), np.flatnonzero(found.may)
    if not len(places):
        return Choice(places)
    own = found.pool[places]
    limit = len(places) if found.limit is None else found.limit
    domains, sources = (
        own[column].fill_null("").rank("dense").cast(pl.Int64).to_numpy() for column in ("domain", "source")
    )
    losses = losses_of(features.vectors(own["sample_id"]))
    if losses.path is None:
        hard = places[difficult(losses.random, sources, limit)]
        return Choice(found.ranked(True, hard))
    return Choice(places[temp(losses.random, losses.path, own["sample_id"], domains, sources, limit, selector.seed)])


def _tagcos(selector: Tagcos, found: Candidates) -> Choice:
    features, places = _features(selector.kind, found), np.flatnonzero(found.may)
    if not len(places):
        return Choice(places)
    ids = found.pool["sample_id"].gather(places)
    limit = len(places) if found.limit is None else found.limit
    return Choice(places[tagcos(features.vectors(ids), ids, limit, selector.clusters, selector.seed)])


def _tie_rank(ids: pl.Series) -> Positions:
    """Return the rank of each id among all ids."""
    rank: Positions = ids.rank("ordinal").cast(pl.Int64).to_numpy()
    return rank


_SELECTORS: dict[type, Callable[[Any, Candidates], Choice]] = {
    Top: _top,
    Band: _band,
    Random: _random,
    PerPrompt: _per_prompt,
    RoundRobin: _round_robin,
    KCenter: _k_center,
    S2L: _s2l,
    Temp: _temp,
    Tagcos: _tagcos,
}
