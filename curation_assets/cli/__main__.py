"""`python -m curation_assets.cli` runs `curate`."""

from curation_assets.cli.app import app

app()
