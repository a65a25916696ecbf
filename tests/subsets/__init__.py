"""Selectors, subsets and what-ifs."""
