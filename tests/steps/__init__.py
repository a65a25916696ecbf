"""Tests of `curation_assets.steps`."""
