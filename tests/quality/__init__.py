"""Tests of `curation_assets.quality`."""
