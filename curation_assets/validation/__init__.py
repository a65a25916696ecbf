"""Held-out validation sets: samples that methods compare the pool with, never part of it."""
