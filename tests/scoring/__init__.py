"""Tests of `curation_resources.scoring`: fast paths against slow, obvious twins."""
