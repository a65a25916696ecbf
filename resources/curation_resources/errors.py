"""The base class of errors that a user can fix; commands print the message instead of a traceback."""

from __future__ import annotations


def in_a_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class UserError(RuntimeError):
    """An error that the user can fix; the message states the problem and the fix."""
