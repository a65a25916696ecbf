"""What every selector is made of: its declaration, the candidates that it orders, and the order that it returns.

An order holds everything that a selector would take, so that any budget is a prefix of it. Orders are deterministic,
break ties by sample_id, and do not depend on the order of rows. They hold positions: of a million samples only the
selected ones are ever moved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curation_assets.tables.signals import SignalName
from curation_resources.sections import Section

Positions = NDArray[np.int64]
Mask = NDArray[np.bool_]
Vectors = NDArray[np.floating]
Order = Literal["highest", "lowest"]


class SelectorSection(Section):
    """Parameters of a selector, as curation.yaml holds them."""

    kind: str


@dataclass(frozen=True)
class Selector:
    """The declaration of a selector.

    Attributes:
        section: its parameters; the default of `kind` is its name.
        order: returns the order in which it takes candidates.
        vectors: True if it compares samples by vectors, so that all eligible samples are in memory.
        signal: the signal whose vectors it needs; None: any vectors.
        validation: True if it needs the vectors of validation samples.
        needs: what it needs, in words, for the message about a method that does not have it.
        apportions: True if it apportions a number of samples to groups itself: no token budgets, no strata.
    """

    section: type[SelectorSection]
    order: Callable[[Any, Candidates], Choice]
    vectors: bool = False
    signal: SignalName | None = None
    validation: bool = False
    needs: str = ""
    apportions: bool = False

    @property
    def kind(self) -> str:
        """Its name in curation.yaml."""
        return str(self.section.model_fields["kind"].default)


@dataclass(frozen=True)
class Features:
    """Data that a selector may request beside scores; loaded on request.

    Attributes:
        vectors: returns embeddings [n, d] of samples by id, in order; every sample has one.
        validation: returns embeddings [M, d] of the validation samples, in the order of their turns; None if the method
            compares with none.
        prompts: returns prompt_ids of the validation samples; None in the same case.
    """

    vectors: Callable[[pl.Series], Vectors]
    validation: Callable[[], Vectors] | None = None
    prompts: Callable[[], list[str]] | None = None


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


def features_of(kind: str, found: Candidates) -> Features:
    """Return the vectors of the candidates. Settings refuse a selector whose score's method has none."""
    assert found.features is not None, f"selector {kind} without vectors"
    return found.features


def tie_rank(ids: pl.Series) -> Positions:
    """Return the rank of each id among all ids."""
    rank: Positions = ids.rank("ordinal").cast(pl.Int64).to_numpy()
    return rank
