"""Distance that training moved a model: ||theta_ft - theta_0||_2, by tensor, over all parameters (arXiv 2502.04194).

Source: GRAPE. A LoRA checkpoint is compared as its merged product, without loading the base. Whole models are compared
one tensor at a
time if their files use the same names; else both models are loaded (`scoring.endpoints`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from curation_resources.scoring.endpoints import (
    ADAPTER_SETTINGS,
    EndpointError,
    differences_of_models,
    lora_products,
    squared_norm,
)

LAYER = re.compile(r"\.(\d+)\.")
"""Matches the number of a decoder layer in a tensor's name."""
ELSEWHERE = "elsewhere"
"""Key for the tensors outside all layers: embeddings, the last norm, the head."""


def distances(checkpoint: Path, base: Path, *, trust_remote_code: bool = False) -> dict[str, float]:
    """Return the L2 norm of the difference of every tensor that differs, by its name; empty if none does.

    Args:
        checkpoint: a model folder (safetensors), or a LoRA folder over the base.
        base: the base's model folder.
        trust_remote_code: run Python code that the folders ship, if they have to be loaded.

    Raises:
        EndpointError: the checkpoint's tensors do not match the base's, or its adapter is not plain LoRA.
    """
    if (checkpoint / ADAPTER_SETTINGS).is_file():
        found: Iterator[tuple[str, Tensor]] = lora_products(checkpoint)
    elif set(_places(checkpoint)) <= set(_places(base)):
        found = _differences_of_files(_places(checkpoint), _places(base))
    else:
        found = iter(differences_of_models(checkpoint, base, trust_remote_code=trust_remote_code).items())
    norms = {name: math.sqrt(squared_norm(tensor)) for name, tensor in found}
    return {name: norm for name, norm in norms.items() if norm > 0.0}


def total(norms: Mapping[str, float]) -> float:
    """Return the total distance over these tensors."""
    return math.sqrt(math.fsum(norm * norm for norm in norms.values()))


def by_layer(norms: Mapping[str, float]) -> dict[str, float]:
    """Return distances by decoder layer, in order, and over the tensors outside all layers."""
    grouped: dict[str, dict[str, float]] = {}
    for name, norm in norms.items():
        layer = LAYER.search(name)
        grouped.setdefault(layer.group(1) if layer else ELSEWHERE, {})[name] = norm
    order = sorted(grouped, key=lambda layer: (layer == ELSEWHERE, 0 if layer == ELSEWHERE else int(layer)))
    return {layer: total(grouped[layer]) for layer in order}


def _places(folder: Path) -> dict[str, Path]:
    """Return the file of a model folder that each tensor is in."""
    places: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            places |= dict.fromkeys(file.keys(), path)
    return places


def _differences_of_files(arrived: Mapping[str, Path], started: Mapping[str, Path]) -> Iterator[tuple[str, Tensor]]:
    for name, path in arrived.items():
        with safe_open(path, framework="pt") as to, safe_open(started[name], framework="pt") as since:
            ours, theirs = to.get_tensor(name), since.get_tensor(name)
            if ours.shape != theirs.shape:
                raise EndpointError(f"{name} in {path} has shape {tuple(ours.shape)}, the base's {tuple(theirs.shape)}")
            yield name, ours.to(torch.float32) - theirs.to(torch.float32)
