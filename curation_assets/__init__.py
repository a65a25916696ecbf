"""Curate reasoning data: measure every step of a trace with the target model, select, release, trace back.

`open` returns a `Project`, the Python API. The packages are layers; CONTRIBUTING.md shows them.
"""

import warnings
from importlib.metadata import PackageNotFoundError, version

from curation_assets.project import Project, open

# Dagster marks some decorators that we rely on as beta or preview. Silenced once here, before any asset
# module is imported; by message, because importing Dagster for its classes would slow every command.
warnings.filterwarnings("ignore", message=r".* is currently in (beta|preview)")

__all__ = ["Project", "__version__", "open"]

try:
    __version__ = version("curation-assets")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"
