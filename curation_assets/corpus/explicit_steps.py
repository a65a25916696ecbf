"""Where the steps that a row lists stand in its response."""

from __future__ import annotations

from collections.abc import Sequence


def locate_steps(response: str, steps: Sequence[str]) -> list[tuple[int, int]] | None:
    """Spans (start, end) in characters of each step that is not blank, or None if they are not all there.

    Surrounding white space of a step does not matter; steps must follow one another without overlap. The
    earliest place is taken for each, which finds an arrangement whenever there is one.
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
