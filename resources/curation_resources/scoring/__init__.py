"""Measuring samples with a model: loading, encoding, batching, the forward pass.

Torch and transformers only: this package imports nothing else of ours, no Dagster, Polars or DuckDB, so
that it runs on a bare GPU box.
"""
