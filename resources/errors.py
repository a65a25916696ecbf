"""The base of every error that a user can mend: commands show its message instead of a traceback."""

from __future__ import annotations


class UserError(RuntimeError):
    """Something the user can mend; the message names what is wrong and how."""
