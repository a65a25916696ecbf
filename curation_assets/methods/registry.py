"""Registry of all methods by name; every module of this package with a list `METHODS` adds one or more."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from curation_assets import methods
from curation_assets.methods.method import Method, ScoreSection


def _find() -> dict[str, Method]:
    found: dict[str, Method] = {}
    for module in sorted(pkgutil.iter_modules(methods.__path__), key=lambda info: info.name):
        name = f"{methods.__name__}.{module.name}"
        for method in getattr(import_module(name), "METHODS", ()) if name != __name__ else ():
            if method.name in found:
                raise ImportError(f"two methods have the name {method.name}")
            found[method.name] = method
    return found


METHODS: dict[str, Method] = _find()


def method_of(score: ScoreSection) -> Method:
    """Return the method of a named score."""
    return METHODS[score.method]
