"""Round robin: each validation sample in turn takes its best remaining sample (RDS+, arXiv 2503.01807; NV-Embed style).

Every validation sample has a list of its most similar samples, just long enough. When one runs out, new lists are made
from the remaining samples, which become ever fewer, and the turns continue where they stopped.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from curation_assets.methods.selectors.candidates import (
    Candidates,
    Choice,
    Selector,
    SelectorSection,
    features_of,
    tie_rank,
)
from curation_assets.methods.vectors import cosine_rows

SHARE_OF_LIST = 4
SPARE = 64
"""Lists are this multiple of a validation sample's share of the limit, plus a few more, since lists overlap."""
GUESS = 4096
"""Number of similarities used to estimate the lower end of a list."""

Positions = NDArray[np.int64]


class Lists(NamedTuple):
    """The most similar samples of every validation sample, best first; `complete` if there are no more."""

    positions: list[list[int]]
    complete: bool


def round_robin(
    vectors: NDArray[np.floating],
    validation: NDArray[np.floating],
    limit: int,
    tie_rank: Positions,
    lose_turns: bool = False,
) -> Positions:
    """Return the order in which samples are taken.

    Args:
        vectors: embeddings of the samples [N, d], finite.
        validation: embeddings of the validation samples [M, d], in the order of their turns.
        limit: number of samples to take, or all.
        tie_rank: order among equally similar samples [N].
        lose_turns: skip a turn whose best sample is already taken, as the released code does, instead of taking the
            next best.
    """
    limit = min(limit, len(vectors))
    if limit == 0 or not len(validation):
        return np.empty(0, dtype=np.int64)
    if lose_turns:
        return _losing_turns(vectors, validation, limit, tie_rank)
    order: list[int] = []
    left = np.arange(len(vectors))
    turn = 0
    while len(order) < limit:
        wanted = limit - len(order)
        length = SHARE_OF_LIST * -(-wanted // len(validation)) + SPARE
        remaining = vectors if not order else vectors[left]
        lists = best_lists(remaining, validation, length, tie_rank[left])
        taken, turn = _take_turns(lists, len(left), wanted, turn)
        order += left[taken].tolist()
        free = np.ones(len(left), dtype=np.bool_)
        free[taken] = False
        left = left[free]
    return np.array(order, dtype=np.int64)


def _take_turns(lists: Lists, samples: int, wanted: int, turn: int) -> tuple[list[int], int]:
    """Return positions taken, in order, until there are enough or a list runs out, and whose turn is next."""
    free = bytearray(b"\x01") * samples
    queues = [iter(row) for row in lists.positions]
    taken: list[int] = []
    while len(taken) < wanted:
        for found in queues[turn]:
            if free[found]:
                free[found] = 0
                taken.append(found)
                break
        else:
            return taken, turn
        turn = (turn + 1) % len(queues)
    return taken, turn


def _losing_turns(
    vectors: NDArray[np.floating], validation: NDArray[np.floating], limit: int, tie_rank: Positions
) -> Positions:
    """Return the released code's order: every list is traversed rank by rank, and taken samples lose their turn."""
    length = min(len(vectors), SHARE_OF_LIST * -(-limit // len(validation)) + SPARE)
    while True:
        lists = best_lists(vectors, validation, length, tie_rank)
        rounds = np.array(lists.positions).T.reshape(-1)
        _, firsts = np.unique(rounds, return_index=True)
        order: Positions = rounds[np.sort(firsts)][:limit]
        if len(order) == limit or lists.complete:
            return order
        length = min(len(vectors), 4 * length)


def best_lists(
    vectors: NDArray[np.floating], validation: NDArray[np.floating], length: int, tie_rank: Positions
) -> Lists:
    """Return the `length` most similar samples of every validation sample, or all."""
    lists = [_best(row, length, tie_rank).tolist() for row in cosine_rows(validation, vectors)]
    return Lists(lists, complete=length >= len(vectors))


def _best(similarity: NDArray[np.float32], length: int, tie_rank: Positions) -> Positions:
    """Return the positions of the largest similarities [N], largest first."""
    samples = len(similarity)
    near = np.arange(samples)
    if 2 * length < samples:
        # Estimate the threshold from a subsample; if that finds too few, compute it exactly.
        some = similarity[:: max(1, samples // GUESS)]
        place = len(some) - 1 - min(len(some) - 1, 2 * length * len(some) // samples + 8)
        near = np.flatnonzero(similarity >= np.partition(some, place)[place])
        if len(near) < length:
            near = np.flatnonzero(similarity >= np.partition(similarity, samples - length)[samples - length])
    order = np.argsort(-similarity[near])
    ordered = similarity[near[order]]
    if (ordered[1:] == ordered[:-1]).any():
        order = np.lexsort((tie_rank[near], -similarity[near]))
    best: Positions = near[order[:length]]
    return best


class RoundRobin(SelectorSection):
    """Let each validation sample in turn pick its best remaining sample, by embeddings."""

    kind: Literal["round_robin"] = "round_robin"
    parity: Literal["paper", "as_coded"] = Field(
        "paper", description="as_coded: skip a turn if its best sample is already selected"
    )


def _round_robin(selector: RoundRobin, found: Candidates) -> Choice:
    features, places = features_of(selector.kind, found), np.flatnonzero(found.may)
    assert features.validation is not None, "round_robin without validation samples"
    if not len(places):
        return Choice(places)
    ids = found.pool["sample_id"].gather(places)
    limit = len(places) if found.limit is None else found.limit
    order = round_robin(
        features.vectors(ids), features.validation(), limit, tie_rank(ids), selector.parity == "as_coded"
    )
    return Choice(places[order])


SELECTORS = [
    Selector(RoundRobin, _round_robin, vectors=True, validation=True, needs="validation samples", version=2),
]
