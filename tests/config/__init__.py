"""Tests of what a user configures and of what is shown to them: settings, tables, terminal, plots."""
