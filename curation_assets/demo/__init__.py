"""The embedded demo: a labelled corpus of reasoning traces made from a seed, and a tiny model for it."""
