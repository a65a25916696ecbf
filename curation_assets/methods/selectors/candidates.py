"""What every selector is made of: its declaration, the candidates that it gets, and the keys or the order it returns.

A selector ranks rows by a number that each row has by itself (`Selector.rank`), so that a pool of any size can be
sorted on disk. Or it orders all candidates in memory (`Selector.order`), as those do that compare vectors. Either way
the order holds everything that the selector would take: any budget is a prefix of it. Orders are deterministic, break
ties by sample_id, and do not depend on the order of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from curation_assets.tables.signals import SignalName
from curation_resources.sections import Section

Positions = NDArray[np.int64]
Mask = NDArray[np.bool_]
Vectors = NDArray[np.floating]
Order = Literal["highest", "lowest"]


class SelectorSection(Section):
    """Parameters of a selector, as curation.yaml holds them."""

    kind: str


class VectorSelector(SelectorSection):
    """Parameters of a selector that compares samples by their vectors."""

    vectors: str | None = Field(
        None,
        description="name of a score whose method has vectors, such as k_center, which are compared; default: those of "
        "the subset's own score",
    )


@dataclass(frozen=True)
class Selector:
    """The declaration of a selector.

    Attributes:
        section: its parameters; the default of `kind` is its name.
        order: returns the order in which it takes candidates; None if it has `rank`.
        rank: returns the keys of candidates, which may be a part of the pool; None if it has `order`.
        per_prompt: with `rank`: returns how many samples of each prompt it takes ("original": as many as the prompt had
            before others were added; None: all); samples that are alone with their prompt are left out.
        reads: with `rank`: the columns of the pool, other than sample_id, that it reads; None: it may read any.
        begins: with `rank`: returns the rank at which the order begins, given the numbers of eligible samples and of
            candidates; the ranks before it follow at the end, backwards.
        vectors: True if it compares samples by vectors.
        signal: the signal whose vectors it needs; None: any vectors.
        validation: True if it needs the vectors of validation samples.
        needs: what it needs, in words, for the message about a method that does not have it.
        apportions: True if it apportions a number of samples to groups itself: no token budgets, no strata.
        version: raised when it selects other samples from the same input, so that its subsets are selected again.
    """

    section: type[SelectorSection]
    order: Callable[[Any, Candidates], Choice] | None = None
    rank: Callable[[Any, Candidates], Keys] | None = None
    per_prompt: Callable[[Any], int | Literal["original"] | None] | None = None
    begins: Callable[[Any, int, int], int] | None = None
    reads: frozenset[str] | None = None
    vectors: bool = False
    signal: SignalName | None = None
    validation: bool = False
    needs: str = ""
    apportions: bool = False
    version: int = 1

    def __post_init__(self) -> None:
        """Check that the selector is declared in one way.

        Raises:
            ValueError: it has both `order` and `rank`, or neither; or parts of a ranking that do not go together.
        """
        if (self.order is None) == (self.rank is None):
            raise ValueError(f"selector {self.kind}: set either order or rank")
        if (self.per_prompt and self.begins) or ((self.per_prompt or self.begins) and self.rank is None):
            raise ValueError(f"selector {self.kind}: set per_prompt or begins, and only with rank")

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
        influence: returns the score of samples by id, in order, for each validation set alone [n, K]; None in the same
            case.
    """

    vectors: Callable[[pl.Series], Vectors]
    validation: Callable[[], Vectors] | None = None
    prompts: Callable[[], list[str]] | None = None
    influence: Callable[[pl.Series], NDArray[np.float64]] | None = None


@dataclass(frozen=True)
class Candidates:
    """The samples that may be chosen.

    Attributes:
        pool: the columns of `sample_scores` other than scores, one row per sample.
        score: score of each row [N].
        may: rows that are eligible and have a finite score [N].
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

    def by_score(self, highest_first: bool) -> NDArray[np.float64]:
        """Return keys that sort the rows by score, lowest first [N]."""
        return -self.score if highest_first else self.score

    def ranked(self, highest_first: bool, among: Positions | None = None) -> Positions:
        """Return positions sorted by score, ties broken by sample_id."""
        places = np.flatnonzero(self.may) if among is None else among
        return places[ascending(self.by_score(highest_first)[places], self.pool["sample_id"], places, self.limit)]


@dataclass(frozen=True)
class Keys:
    """The numbers by which rows are ranked.

    Attributes:
        key: the key of each row, lowest first, ties broken by sample_id [n]; rows that may not be chosen may have any.
        allowed: rows that the selector takes at all [n]; None: all.
        original: rows of the original pool [n]; None: all.
    """

    key: NDArray[np.float64]
    allowed: Mask | None = None
    original: Mask | None = None


@dataclass(frozen=True)
class Choice:
    """An order of choice.

    Attributes:
        order: positions in the pool, best first.
        left_out: eligible samples that the selector takes under no budget, by reason.
        warnings: properties of the pool that the method's source excludes, each as a clause.
    """

    order: Positions
    left_out: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def ascending(
    key: NDArray[np.float64], sample_ids: pl.Series, places: Positions, limit: int | None = None
) -> Positions:
    """Return indices that sort a key, ties broken by sample_id.

    Args:
        key: the key [n], without NaN.
        sample_ids: ids of the whole pool.
        places: position in the pool of each of the n.
        limit: return only this many.
    """
    if limit is not None and 0 < limit < len(key) // 2:
        few = np.flatnonzero(key <= np.partition(key, limit - 1)[limit - 1])
        return few[ascending(key[few], sample_ids, places[few])][:limit]
    names = pl.DataFrame({"key": key + 0.0, "sample_id": sample_ids.gather(places)})
    order: Positions = names.select(pl.arg_sort_by("key", "sample_id")).to_series().to_numpy().astype(np.int64)
    return order


def features_of(kind: str, found: Candidates) -> Features:
    """Return the vectors of the candidates. Settings refuse a selector whose score's method has none."""
    assert found.features is not None, f"selector {kind} without vectors"
    return found.features


def tie_rank(ids: pl.Series) -> Positions:
    """Return the rank of each id among all ids."""
    rank: Positions = ids.rank("ordinal").cast(pl.Int64).to_numpy()
    return rank
