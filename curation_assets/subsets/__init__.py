"""Subsets: a selector over scores, within a budget."""
