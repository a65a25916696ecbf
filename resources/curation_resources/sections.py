"""Building blocks for sections of `curation.yaml`: the base class, names and errors with a location."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[
    str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=100, description="lower-case letters, digits and _")
]


def unknown(kind: str, name: str, known: Iterable[str], plural: str | None = None) -> str:
    """Return the error message for an unknown name, with the closest match or else all known names."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"{plural or kind + 's'} are {', '.join(names) or '(none)'}"
    return f"there is no {kind} {name!r}; {hint}"


class LocatedError(ValueError):
    """An error at a known location below the section that detected it."""

    def __init__(self, location: list[int | str], message: str) -> None:
        super().__init__(message)
        self.location = location


class Section(BaseModel):
    """A section of the file: unknown keys are errors, and values are immutable after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
