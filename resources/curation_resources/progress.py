"""Progress of long tasks: a bar in the terminal if a command installed a display, log lines otherwise.

Stages call `track`; the caller of a stage decides on the display (`curate` installs a Rich display).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

logger = logging.getLogger("curation")
LOG_EVERY_SECONDS = 10.0


class Display(Protocol):
    """An interface for showing progress bars; `start` returns the number of the new bar."""

    def start(self, description: str, total: int) -> int: ...  # noqa: D102

    def advance(self, bar: int, count: int) -> None: ...  # noqa: D102

    def finish(self, bar: int) -> None: ...  # noqa: D102


_display: ContextVar[Display | None] = ContextVar("display", default=None)


@contextmanager
def shown_on(display: Display) -> Iterator[None]:
    """Show the progress of everything inside the block on a display."""
    token = _display.set(display)
    try:
        yield
    finally:
        _display.reset(token)


@contextmanager
def track(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a callback that takes the number of items finished since its last call."""
    display = _display.get()
    if display is None:
        yield _log_progress(description, total)
        return
    bar = display.start(description, total)
    try:
        yield lambda count: display.advance(bar, count)
    finally:
        display.finish(bar)


def _log_progress(description: str, total: int) -> Callable[[int], None]:
    done = 0
    started = logged = time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, logged
        done += count
        now = time.monotonic()
        if now - logged >= LOG_EVERY_SECONDS:
            logged = now
            left = (total - done) * (now - started) / max(done, 1)
            logger.info("%s: %d of %d, about %.0f s left", description, done, total, left)

    return advance
