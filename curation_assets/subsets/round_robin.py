"""Round robin: each validation sample in turn takes its best remaining one (RDS+, arXiv 2503.01807; NV-Embed style)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from curation_assets.subsets.vectors import cosines

MERGE_AT = 4_000_000
"""Candidates that are collected before the lists are cut again."""

Positions = NDArray[np.int64]


class Lists(NamedTuple):
    """Of every validation sample its most similar samples, best first: positions [M, L]."""

    positions: Positions
    complete: bool


def round_robin(
    vectors: NDArray[np.floating],
    validation: NDArray[np.floating],
    limit: int,
    tie_rank: Positions,
    lose_turns: bool = False,
) -> Positions:
    """The order in which samples are taken.

    Args:
        vectors: embeddings of the samples [N, d], finite.
        validation: embeddings of the validation samples [M, d], in the order of their turns.
        limit: so many samples are taken, or all.
        tie_rank: which of two equally similar samples comes first [N].
        lose_turns: a turn whose best sample is taken already is lost, as in the released code, instead of going
            to the next best.
    """
    limit = min(limit, len(vectors))
    if limit == 0 or not len(validation):
        return np.empty(0, dtype=np.int64)
    length = min(len(vectors), 4 * -(-limit // len(validation)) + 64)
    while True:
        lists = best_lists(vectors, validation, length, tie_rank)
        taken = _take_turns(lists, len(vectors), limit, lose_turns)
        if taken is not None:
            return taken
        length = min(len(vectors), 4 * length)


def _take_turns(lists: Lists, samples: int, limit: int, lose_turns: bool) -> Positions | None:
    """The order of choice, or None if a list ended too early."""
    free = bytearray(b"\x01") * samples
    queues = [iter(row) for row in lists.positions.tolist()]
    order: list[int] = []
    while len(order) < limit and queues:
        going = []
        for queue in queues:
            found = next(queue, -1)
            while found >= 0 and not free[found] and not lose_turns:
                found = next(queue, -1)
            if found < 0:
                if not lists.complete:
                    return None
                continue
            going.append(queue)
            if free[found]:
                free[found] = 0
                order.append(found)
                if len(order) == limit:
                    break
        queues = going
    return np.array(order, dtype=np.int64)


def best_lists(
    vectors: NDArray[np.floating], validation: NDArray[np.floating], length: int, tie_rank: Positions
) -> Lists:
    """The `length` most similar samples of every validation sample, without all similarities at once."""
    count = len(validation)
    least = np.full(count, -np.inf, dtype=np.float32)
    found: list[tuple[Positions, Positions, NDArray[np.float32]]] = []
    waiting = 0
    for rows, block in cosines(vectors, validation):
        if np.isneginf(least).any() and len(block) > length:
            # Nothing is known yet: only the block's own best can be among the best.
            kth = np.partition(block, len(block) - length, axis=0)[len(block) - length]
            near, owner = np.nonzero(block >= np.maximum(least, kth))
        else:
            near, owner = np.nonzero(block >= least)
        found.append((owner, near + rows.start, block[near, owner]))
        waiting += len(owner)
        if waiting > MERGE_AT:
            found = [_cut(found, count, length, tie_rank, least)]
            waiting = len(found[0][0])
    owner, position, _ = _cut(found, count, length, tie_rank, least)
    return (
        Lists(position.reshape(count, -1), complete=length >= len(vectors))
        if len(owner)
        else Lists(np.empty((count, 0), dtype=np.int64), complete=True)
    )


def _cut(
    found: list[tuple[Positions, Positions, NDArray[np.float32]]],
    count: int,
    length: int,
    tie_rank: Positions,
    least: NDArray[np.float32],
) -> tuple[Positions, Positions, NDArray[np.float32]]:
    """The best of what was found, sorted by validation sample and similarity; raises `least` to the last of each."""
    owner, position, value = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((tie_rank[position], -value, owner))
    owner, position, value = owner[order], position[order], value[order]
    starts = np.searchsorted(owner, np.arange(count))
    place = np.arange(len(owner)) - starts[owner]
    kept = place < length
    last = place == length - 1
    least[owner[last]] = value[last]
    return owner[kept], position[kept], value[kept]
