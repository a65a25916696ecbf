"""Measurements of samples with a model: one asset a pass, on the gpu pool."""
