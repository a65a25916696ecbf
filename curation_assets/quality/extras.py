"""The libraries of the extra `filters`: imported when a check first needs them, with a clear error when missing."""

from __future__ import annotations

import importlib
from typing import Any

from curation_resources.errors import UserError


class MissingExtraError(UserError):
    """A library of the extra `filters` is not installed."""


def filters_library(name: str) -> Any:
    """The module of that name.

    Raises:
        MissingExtraError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"this check needs the library {name}: pip install 'curation-assets[filters]' ({error})"
        ) from error
