"""Tests that run the whole path: main job, sensors, releases, commands."""
