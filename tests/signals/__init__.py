"""Tests of the signals stage."""
