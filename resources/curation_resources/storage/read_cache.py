"""Cache storage reads inside a block, so that repeated requests are sent only once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

# Per thread (and threads that run in its context), since another thread may be inside a long operation.
_ANSWERS: ContextVar[dict[Hashable, Any] | None] = ContextVar("answers", default=None)


@contextmanager
def one_look(on: bool = True) -> Iterator[None]:
    """Cache storage reads inside this block; writes of this process invalidate the cache.

    For blocks that take decisions within seconds. Use `on=False` inside such a block for long operations; after it, the
    cache starts empty again.
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
    """Return the cached answer to a question, or ask and cache the answer if it is worth it."""
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
    """Clear the cache after a change."""
    answers = _ANSWERS.get()
    if answers is not None:
        answers.clear()
