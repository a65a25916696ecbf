"""Draw equal plots once per process: most runs of the suite plot the same few values, and drawing is a third of a run.

A plot is a function of its arguments, so an equal call returns the picture drawn before. Importing this module replaces
the functions of `curation_resources.plots`, so import it before modules that import them by name. Tests of drawing
itself use the fixture `fresh_plots`.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from curation_resources import plots

DRAWING = (
    "histogram",
    "counted_histogram",
    "curve",
    "curves",
    "scatter",
    "heat_map",
    "stacked_bars",
    "intervals",
)

_drawn: dict[bytes, str] = {}
_always_draw: ContextVar[bool] = ContextVar("always_draw", default=False)


@contextmanager
def all_drawn() -> Iterator[None]:
    """Draw every plot inside the block, also those that were drawn before."""
    token = _always_draw.set(True)
    try:
        yield
    finally:
        _always_draw.reset(token)


def _remembered(draw: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> str:
        # Plots that also go to a file are drawn.
        if _always_draw.get() or plots._file.get() is not None:
            return draw(*args, **kwargs)
        key = pickle.dumps((draw.__name__, args, kwargs))
        if key not in _drawn:
            _drawn[key] = draw(*args, **kwargs)
        return _drawn[key]

    return drawn


for _name in DRAWING:
    setattr(plots, _name, _remembered(getattr(plots, _name)))
