"""Runs of the real pipeline that are killed, starved, lied to or run twice, and what is left of them.

python -m tests.faults --rounds 100
"""
