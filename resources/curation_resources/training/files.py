"""Names of the files that a checkpoint has, beside those of a model or an adapter."""

from __future__ import annotations

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
"""Endings of files that hold weights: a trained model's folder has its own."""
RECORD = "checkpoint.json"
"""What was trained, and how: a checkpoint's folder with it is whole."""
TRAINED_ON = "trained_on.parquet"
"""The sample_ids that a checkpoint was trained on, with a column `INFLUENCE` where that was asked for."""
INFLUENCE = "influence"
"""Of each sample its influence on each validation set."""
