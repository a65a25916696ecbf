"""The error that a user of the scoring code can mend."""

from __future__ import annotations


class ScoringError(RuntimeError):
    """A model or tokenizer cannot be measured with; the message says why."""
