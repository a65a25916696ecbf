"""Libraries of the extra `filters`: imported on first use, with a clear error if they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from curation_resources.errors import UserError


class MissingExtraError(UserError):
    """A library of the extra `filters` is not installed."""


def filters_library(name: str) -> Any:
    """Return the module of that name.

    Raises:
        MissingExtraError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"this check requires the library {name}. Install it with pip install 'curation-assets[filters]' ({error})."
        ) from error
