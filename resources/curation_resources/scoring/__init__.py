"""Measure samples with a model: loading, encoding, batching, the forward pass.

Needs only torch and transformers. This package imports no other part of the project, and no Dagster, Polars or DuckDB,
so that it runs on a bare GPU machine.
"""
