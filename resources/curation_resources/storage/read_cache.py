"""Answers of storages, remembered while one look at them lasts: what is asked twice is asked for once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

# Of the thread (and those that it hands its context to): another one may be in the middle of what takes long.
_ANSWERS: ContextVar[dict[Hashable, Any] | None] = ContextVar("answers", default=None)


@contextmanager
def one_look(on: bool = True) -> Iterator[None]:
    """Take files elsewhere, in this block, as they were when first looked at, until this process changes any.

    For blocks that decide what to do, and last seconds. Off within such a block, for what takes long: after it
    everything is looked at anew.
    """
    outer = _ANSWERS.get()
    token = _ANSWERS.set({} if on else None)
    try:
        yield
    finally:
        _ANSWERS.reset(token)
        if outer is not None:
            outer.clear()


def remembered(question: Hashable, ask: Callable[[], T], worth: Callable[[T], bool] = lambda _: True) -> T:
    """The answer to a question; asked for if it is not remembered, and remembered if it is worth it."""
    answers = _ANSWERS.get()
    if answers is None:
        return ask()
    if question in answers:
        found: T = answers[question]
        return found
    answer = ask()
    if worth(answer):
        answers[question] = answer
    return answer


def forget() -> None:
    """Ask for everything anew: something was changed."""
    answers = _ANSWERS.get()
    if answers is not None:
        answers.clear()
