"""Discovery: declarations in the modules of a package, and those that other packages add through entry points."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import TypeVar

from curation_resources.errors import UserError

T = TypeVar("T")


class PluginError(UserError):
    """An entry point of another package cannot be used."""


def declared_in(package: ModuleType, attribute: str, kind: type[T], skip: str = "") -> Iterator[T]:
    """Yield the declarations in lists of a name in the modules of a package, module by module in alphabetical order.

    Args:
        package: the package.
        attribute: name of the lists. Modules without such a list are supporting code.
        kind: type of a declaration.
        skip: the module that asks, if it is in the package.

    Raises:
        TypeError: something in a list is not a declaration.
    """
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        name = f"{package.__name__}.{module.name}"
        for declared in getattr(import_module(name), attribute, ()) if name != skip else ():
            if not isinstance(declared, kind):
                raise TypeError(f"{name}.{attribute} holds {declared!r}, which is not a {kind.__name__}")
            yield declared


def plugin_names(group: str) -> list[str]:
    """Return the names in a group of entry points, without importing the packages."""
    return sorted(point.name for point in entry_points(group=group))


def plugins(group: str, kind: type[T]) -> Iterator[T]:
    """Yield the declarations that installed packages register in a group of entry points, by name.

    Raises:
        PluginError: an entry point cannot be imported, or names something else.
    """
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        package = "an unknown package" if point.dist is None else point.dist.name
        try:
            declared = point.load()
        except Exception as error:
            raise PluginError(
                f"entry point {point.name!r} ({group}) of {package} cannot be imported: {error!r}. Update or uninstall "
                "the package."
            ) from error
        if not isinstance(declared, kind):
            raise PluginError(
                f"entry point {point.name!r} ({group}) of {package} names {declared!r}. It must name a {kind.__name__}."
            )
        yield declared
