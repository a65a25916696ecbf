"""Models for measuring samples: engines, judges, embedders and reward models."""
