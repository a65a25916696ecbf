"""All methods by name: those of this package, and those that other packages add through entry points."""

from __future__ import annotations

from curation_assets import methods
from curation_assets.methods.combined import COMBINED, Combined
from curation_assets.methods.method import Method, ScoreSection
from curation_resources.plugins import declared_in, plugins

GROUP = "curation_assets.methods"
"""Entry points of this group name a `Method`."""


def _find() -> dict[str, Method]:
    found: dict[str, Method] = {}
    for method in [*declared_in(methods, "METHODS", Method, skip=__name__), *plugins(GROUP, Method)]:
        if method.name in found:
            raise ImportError(f"two methods have the name {method.name}")
        found[method.name] = method
    return found


METHODS: dict[str, Method] = _find()


def method_of(score: ScoreSection) -> Method:
    """Return the method of a score."""
    return COMBINED if isinstance(score, Combined) else METHODS[score.method]
