"""The base of every error that a user can mend: commands show its message instead of a traceback."""

from __future__ import annotations


def in_a_line(error: Exception) -> str:
    """The first line of what an error says; what it is, if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class UserError(RuntimeError):
    """Something the user can mend; the message names what is wrong and how."""
