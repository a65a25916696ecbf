"""Tests of deploy/: every file is held against what reads it, as far as that goes without a cluster."""
