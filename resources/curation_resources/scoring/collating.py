"""Collate encoded samples into the tensors of one padded batch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from curation_resources.scoring.samples import Encoded
from curation_resources.scoring.vision import along_sequence


def batch_key(encoded: Encoded) -> Hashable:
    """Return a key; samples with equal keys may share a batch, because their model inputs can be collated.

    All text-only samples have the same key, so they never run through the vision tower with image samples.
    """
    return tuple(
        (name, str(tensor.dtype), None if along_sequence(name, tensor, len(encoded)) else tuple(tensor.shape[1:]))
        for name, tensor in sorted(encoded.model_inputs.items())
    )


def collate(batch: Sequence[Encoded], device: torch.device) -> dict[str, Any]:
    """Return the decoder's inputs for a batch, padded on the right.

    There is no attention mask: under causal attention no token sees the padding after it, and without a mask the
    attention
    uses its fast path.

    Args:
        batch: runnable samples; text-only ones may be mixed with image samples.
        device: target of the tensors.

    Returns:
        `input_ids` [B, T], and the model inputs of the samples by name: those along the sequence as [B, T], padded with
        0 (text), the others concatenated in the order of the samples.
    """
    longest = max(len(encoded) for encoded in batch)
    inputs = {"input_ids": torch.zeros(len(batch), longest, dtype=torch.long)}
    pieces: dict[str, list[Tensor]] = {}
    for row, encoded in enumerate(batch):
        inputs["input_ids"][row, : len(encoded)] = torch.tensor(encoded.input_ids, dtype=torch.long)
        for name, tensor in encoded.model_inputs.items():
            if along_sequence(name, tensor, len(encoded)):
                whole = inputs.setdefault(name, torch.zeros(len(batch), longest, dtype=tensor.dtype))
                whole[row, : len(encoded)] = tensor[0]
            else:
                pieces.setdefault(name, []).append(tensor)
    inputs |= {name: torch.cat(tensors) for name, tensors in pieces.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}
