"""Plan batches: group samples of similar length within a token budget."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

LEAST_BATCH_SHARE = 0.25
"""A batch that fills this share of its budget is closed rather than padded heavily."""

MUCH_PADDING = 0.1
"""Share of padding in a sequence that counts as heavy."""


def plan_batches(lengths: Sequence[int], budget: int, keys: Sequence[Hashable] | None = None) -> list[list[int]]:
    """Group positions into batches whose padded size stays within a budget.

    Args:
        lengths: tokens of each sequence.
        budget: maximum of longest sequence x number of sequences; a longer sequence runs alone.
        keys: only sequences with equal keys share a batch; default: all may.

    Returns:
        Positions in `lengths`, longest first, so that the largest batch comes first and a lack of memory shows
        immediately.
    """
    order = sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    batches: list[list[int]] = []
    open_batch: dict[Hashable, list[int]] = {}
    for position in order:
        key = keys[position] if keys is not None else None
        batch = open_batch.get(key)
        if batch is None or not _fits(lengths[batch[0]], len(batch), lengths[position], budget):
            batch = open_batch[key] = []
            batches.append(batch)
        batch.append(position)
    return batches


def _fits(longest: int, count: int, length: int, budget: int) -> bool:
    padded = longest * (count + 1)
    much = length < (1.0 - MUCH_PADDING) * longest and longest * count >= LEAST_BATCH_SHARE * budget
    return padded <= budget and not much
