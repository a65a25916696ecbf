"""Tests, mirroring the two packages."""
