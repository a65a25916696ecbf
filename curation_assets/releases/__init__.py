"""Releases: immutable, versioned, traceable copies of subsets."""
