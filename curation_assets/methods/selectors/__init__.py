"""Selectors: one module each, with its parameters and the order in which it takes samples."""
