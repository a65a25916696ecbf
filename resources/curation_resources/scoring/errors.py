"""The base class of errors in the scoring code that the user can fix."""

from __future__ import annotations


class ScoringError(RuntimeError):
    """A model or tokenizer cannot be used for measuring; the message gives the reason."""
