"""Measurements of samples with a model: all that a target asks for from one pass, on the gpu pool."""
