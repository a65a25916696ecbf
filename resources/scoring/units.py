"""What both engines say of results and of samples that a worker died over, without torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

Progress = Callable[[int], None]
"""Called with the number of samples that were done since the last call."""

TRIES = 2
"""So many workers may die over the same unit before the run ends with an error."""


class Positioned(Protocol):
    """A result that knows its sample's place in the input."""

    position: int


Asked = TypeVar("Asked")
Found = TypeVar("Found", bound=Positioned)
