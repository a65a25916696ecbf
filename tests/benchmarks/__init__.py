"""Measurements that the documentation cites: `python -m tests.benchmarks.NAME`. Not timed tests."""
