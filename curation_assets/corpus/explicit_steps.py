"""Locate the steps that a row lists in its response."""

from __future__ import annotations

from collections.abc import Sequence


def locate_steps(response: str, steps: Sequence[str]) -> list[tuple[int, int]] | None:
    """Return the spans (start, end) in characters of each nonblank step, or None if any is missing.

    White space around a step is ignored; steps must occur in order without overlap. Each step takes the earliest
    possible position, which finds an arrangement whenever one exists.
    """
    spans: list[tuple[int, int]] = []
    position = 0
    for step in steps:
        text = step.strip()
        if not text:
            continue
        start = response.find(text, position)
        if start < 0:
            return None
        position = start + len(text)
        spans.append((start, position))
    return spans
