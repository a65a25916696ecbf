"""Matrices to take gradients with respect to: an adapter's two matrices at a layer, or the layer's own weight.

For a linear layer with inputs X [T, d_in] and output gradients D [T, d_out], each of these matrices has the gradient
G = L^T R of two factors that are cheap to compute from X and D:

    the weight W [d_out, d_in]                       L = D              R = X
    an adapter's A [r, d_in] of W + s B A            L = s D B          R = X
    its B [d_out, r]                                 L = D              R = s X A^T

The adapter may be merged into the weight or stay beside it: X and D are the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from curation_resources.scoring.attention_layers import decoder_blocks, is_linear
from curation_resources.scoring.complete_weights import some
from curation_resources.scoring.factors import GradientError
from curation_resources.scoring.gradient_spec import MOMENTS, OPTIMIZER, GradientWeights
from curation_resources.scoring.loading import Checkpoint

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Matrix:
    """One trained matrix.

    Attributes:
        name: the parameter's name in a training run.
        layer: name of the linear layer that it belongs to.
        shape: of its gradient G = L^T R [rows, columns].
        b: s B [d_out, r], if L is D times it; None: L is D.
        a: s A [r, d_in], if R is X times its transpose; None: R is X.
        transposed: the parameter is stored transposed (GPT-2).
    """

    name: str
    layer: str
    shape: tuple[int, int]
    b: Tensor | None = None
    a: Tensor | None = None
    transposed: bool = False

    def left(self, gradients: Tensor) -> Tensor:
        """Return L [B, T, rows] for D [B, T, d_out]."""
        return gradients if self.b is None else gradients @ self.b

    def right(self, inputs: Tensor) -> Tensor:
        """Return R [B, T, columns] for X [B, T, d_in]."""
        return inputs if self.a is None else inputs @ self.a.T


def linear_layers(checkpoint: Checkpoint) -> dict[str, nn.Module]:
    """Return the linear layers of the text decoder's blocks, by their names in the whole model, in model order."""
    blocks = decoder_blocks(checkpoint.uncompiled, checkpoint.model.config)
    inside = {id(module) for module in blocks.modules()}
    found: dict[str, nn.Module] = {}
    for name, module in checkpoint.model.named_modules():
        # An adapter's layer contains the layer that it adapts; only the outer one is called.
        nested = any(name.startswith(f"{outer}.") for outer in found)
        if id(module) in inside and is_linear(module) and not nested:
            found[name] = module
    return found


def trained_matrices(checkpoint: Checkpoint, weights: GradientWeights) -> list[Matrix]:
    """Return the matrices whose gradients are requested.

    Args:
        checkpoint: the model, with an adapter or without.
        weights: `adapter`: A and B of its adapter; `layers`: the weights of all linear layers of the decoder; `auto`:
            the
            adapter's if it has one.

    Raises:
        GradientError: there is no adapter, or its kind is not supported; or layers have weights of another kind.
    """
    layers = linear_layers(checkpoint)
    if weights == "layers" or (weights == "auto" and checkpoint.adapter is None):
        _refuse_others(checkpoint)
        return [_weight(name, module) for name, module in layers.items()]
    if checkpoint.adapter is None:
        raise GradientError("gradients of an adapter are requested, but this checkpoint has none. Use weights: layers.")
    return _of_adapter(checkpoint.adapter, layers, checkpoint.device)


def _refuse_others(checkpoint: Checkpoint) -> None:
    """Check that no matrix of the decoder's layers would be skipped: experts in one tensor, routers.

    Raises:
        GradientError: some would be skipped.
    """
    blocks = decoder_blocks(checkpoint.uncompiled, checkpoint.model.config)
    others = [
        f"{name}.{own}"
        for name, module in blocks.named_modules()
        if not is_linear(module) and not isinstance(module, nn.Embedding)
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.dim() > 1
    ]
    if others:
        raise GradientError(
            f"gradients of {some(others)} are not supported, because these weights are not of linear layers (experts, "
            "routers). Take gradients with respect to an adapter (targets.gradients.weights: adapter, with a warm-up)."
        )


def _weight(name: str, module: nn.Module) -> Matrix:
    weight: Any = module.weight
    # GPT-2's Conv1D keeps its weight as [d_in, d_out].
    turned = type(module).__name__ == "Conv1D"
    rows, columns = reversed(weight.shape) if turned else weight.shape
    return Matrix(f"{name}.weight", name, (int(rows), int(columns)), transposed=turned)


def _of_adapter(folder: Path, layers: dict[str, nn.Module], device: torch.device) -> list[Matrix]:
    settings = json.loads((folder / ADAPTER_CONFIG).read_text())
    odd = [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "lora_bias") if settings.get(key)]
    if settings.get("peft_type") != "LORA" or odd:
        raise GradientError(
            f"{folder}: gradients are supported only for plain LoRA adapters, not with {odd or settings['peft_type']}"
        )
    rank = int(settings["r"])
    scale = float(settings["lora_alpha"]) / (rank**0.5 if settings.get("use_rslora") else rank)
    found = []
    with safe_open(folder / ADAPTER_WEIGHTS, "pt", device=str(device)) as kept:
        for name in layers:
            one = f"{PEFT_PREFIX}{name}"
            if f"{one}.lora_A.weight" not in kept.keys():  # noqa: SIM118 - not a dictionary
                continue
            a, b = (kept.get_tensor(f"{one}.lora_{which}.weight").float() for which in "AB")
            found.append(Matrix(f"{one}.lora_A.default.weight", name, (rank, a.shape[1]), b=scale * b))
            found.append(Matrix(f"{one}.lora_B.default.weight", name, (b.shape[0], rank), a=scale * a))
        if len(found) != len(list(kept.keys())):
            raise GradientError(
                f"{folder} adapts layers other than the linear ones of the text decoder, whose gradients are not "
                "supported"
            )
    return found


def adam_moments(checkpoint: Checkpoint, matrices: list[Matrix]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return AdamW's running means of the gradient and of its square, shaped like the gradients, by matrix name.

    Raises:
        GradientError: the checkpoint was saved without them, or without those of these matrices.
    """
    folder = checkpoint.adapter or checkpoint.folder
    path = None if folder is None else Path(folder) / OPTIMIZER
    if path is None or not path.is_file():
        raise GradientError(f"{folder} has no {OPTIMIZER}, so Adam's direction cannot be computed")
    found = {}
    with safe_open(path, "pt", device=str(checkpoint.device)) as kept:
        there = set(kept.keys())
        for matrix in matrices:
            names = [f"{moment}.{matrix.name}" for moment in MOMENTS]
            if not there.issuperset(names):
                raise GradientError(f"{path} has no moments of {matrix.name}: the run did not train it")
            pair = [kept.get_tensor(name).float() for name in names]
            first, second = (one.T if matrix.transposed else one for one in pair)
            found[matrix.name] = (first, second)
    return found
