"""All methods, by name: every module of `curation_assets.scores.methods` gives one or more."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from curation_assets.scores import methods
from curation_assets.scores.method import Method, ScoreSection


def _find() -> dict[str, Method]:
    found: dict[str, Method] = {}
    for module in sorted(pkgutil.iter_modules(methods.__path__), key=lambda info: info.name):
        for method in import_module(f"{methods.__name__}.{module.name}").METHODS:
            if method.name in found:
                raise ImportError(f"two methods are called {method.name}")
            found[method.name] = method
    return found


METHODS: dict[str, Method] = _find()


def method_of(score: ScoreSection) -> Method:
    """The method of a named score."""
    return METHODS[score.method]
