"""Keeping a warehouse tidy: clearing away, taking samples out, moving measurements to another warehouse."""
