"""A model's weights by name: every tensor once, even if several names share it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Weight:
    """One tensor of a model.

    Attributes:
        names: its names, sorted; tied weights have several.
        tensor: the tensor itself, not a copy.
    """

    names: tuple[str, ...]
    tensor: Tensor

    @property
    def name(self) -> str:
        """The first of its names, which identifies it."""
        return self.names[0]


def weights_of(model: nn.Module) -> dict[str, Weight]:
    """Return all floating-point parameters by `Weight.name`; tied ones once, even if they only share memory."""
    names: dict[tuple[object, ...], list[str]] = {}
    tensors: dict[tuple[object, ...], Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.is_floating_point():
            continue
        tensor = parameter.detach()
        # An empty tensor has no address of its own.
        place = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else (id(parameter),)
        names.setdefault(place, []).append(name)
        tensors[place] = tensor
    weights = [Weight(tuple(sorted(found)), tensors[place]) for place, found in names.items()]
    return {weight.name: weight for weight in sorted(weights, key=lambda weight: weight.name)}
