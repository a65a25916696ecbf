"""Tests of `curation_assets.scores` and `curation_assets.subsets`."""
