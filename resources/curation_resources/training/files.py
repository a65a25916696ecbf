"""The files that a checkpoint has in addition to those of a model or an adapter, and the version of the trainer."""

from __future__ import annotations

TRAINER_VERSION = 4
"""Raised when the same recipe and samples give another checkpoint; part of every fingerprint of one."""
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
"""Suffixes of weight files, which are not copied from the base: a trained model's folder has its own."""
RECORD = "checkpoint.json"
"""Record of the training run; its presence marks a checkpoint's folder as complete."""
TRAINED_ON = "trained_on.parquet"
"""The sample_ids that a checkpoint was trained on, with an optional column `INFLUENCE`."""
INFLUENCE = "influence"
"""Column with each sample's influence on each validation set."""
