"""Tests of `curation_assets.demo`."""
