"""Tests of `resources.scoring`: fast paths against slow, obvious twins."""
