"""Tests of what a run costs."""
