"""Models that samples are measured with: engines, judges, embedders and reward models."""
