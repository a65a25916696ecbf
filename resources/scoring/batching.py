"""Which samples run together: batches of similar length within a token budget."""

from __future__ import annotations

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group positions into batches whose padded size stays within a budget.

    Args:
        lengths: tokens of each sequence.
        budget: longest sequence x number of sequences of a batch; a longer sequence runs alone.

    Returns:
        Positions in `lengths`, longest first, so that the largest batch comes first and running out of
        memory shows at once.
    """
    order = sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    batches: list[list[int]] = []
    for position in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


def padding_fraction(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of the tokens run that are padding."""
    run = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    return 1.0 - sum(lengths) / run if run else 0.0
