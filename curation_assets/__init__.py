"""The curation pipeline. Its packages are layers; CONTRIBUTING.md shows them."""

import warnings

# Dagster marks some decorators that we rely on as beta or preview. Silenced once here, before any asset
# module is imported; by message, because importing Dagster for its classes would slow every command.
warnings.filterwarnings("ignore", message=r".* is currently in (beta|preview)")
