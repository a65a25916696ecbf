"""Run `curate` as `python -m curation_assets.cli`."""

from curation_assets.cli.app import app

app()
