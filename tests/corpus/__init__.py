"""Tests of `curation_assets.corpus`."""
