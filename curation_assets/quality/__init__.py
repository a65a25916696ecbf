"""Checks of the pool that need no model: near-duplicates, benchmark overlap, repetition, language."""
