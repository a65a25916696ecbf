"""Compute the direction from a base model to a fine-tuned endpoint: e = (theta_f - theta_0) / ||theta_f - theta_0||.

Source: TEMP, arXiv 2606.26797: over all tensors, embeddings included, a LoRA endpoint as its merged product. The
endpoint is a model folder, or a LoRA folder over the base. A model folder is loaded in the same way as the base, since
tensor names in files may differ from those of the loaded model. The difference is computed tensor by tensor in the
endpoint's own memory, freeing the base's tensors on the way. For a LoRA folder, only its factors are read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from curation_resources.scoring.complete_weights import LoadingError, load_config, load_whole, some
from curation_resources.scoring.errors import ScoringError
from curation_resources.scoring.loading import reads_images
from curation_resources.scoring.weights import Weight, weights_of

ADAPTER_SETTINGS = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Supported initializations of the factors (`init_lora_weights`); others change the base's weights as well."""

FACTOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")


SLICE = 2**20
"""Elements per fp64 sum of squares."""


class EndpointError(ScoringError):
    """An endpoint that has no direction from the base model."""


@dataclass(frozen=True)
class Direction:
    """The direction and distance of an endpoint from the base.

    Attributes:
        tensors: e by `Weight.name`, in fp32 on the CPU, in the weights' shapes; tensors that are all zero are left out.
        distance: ||theta_f - theta_0|| over all tensors.
    """

    tensors: Mapping[str, Tensor]
    distance: float

    @property
    def elements(self) -> int:
        """The number of elements in the tensors of e."""
        return sum(tensor.numel() for tensor in self.tensors.values())


def direction_to(endpoint: Path, base: Path, *, trust_remote_code: bool = False) -> Direction:
    """Return the direction from a base model to an endpoint.

    Peak memory is two whole copies in fp32, and one at the end. Differences use the numbers in the files, whatever
    precision the base is measured in.

    Args:
        endpoint: a model folder (safetensors), or a LoRA folder over the base.
        base: the base's model folder.
        trust_remote_code: run Python code that the folders ship.

    Raises:
        EndpointError: the endpoint's tensors do not match the base's by name and shape, its adapter is not plain LoRA,
            or it does not differ from the base.
    """
    if (endpoint / ADAPTER_SETTINGS).is_file():
        return normalised(dict(lora_products(endpoint)), endpoint)
    return normalised(differences_of_models(endpoint, base, trust_remote_code=trust_remote_code), endpoint)


def differences_of_models(endpoint: Path, base: Path, *, trust_remote_code: bool = False) -> dict[str, Tensor]:
    """Return theta_f - theta_0 of two model folders, by name, in fp32 on the CPU.

    Raises:
        EndpointError: see `direction_to`.
    """
    started, ignored = _load(base, trust_remote_code)
    arrived, unknown = _load(endpoint, trust_remote_code)
    if unknown - ignored:
        raise EndpointError(f"{endpoint} contains tensors that its model does not have: {some(unknown - ignored)}")
    return _differences(started, arrived, endpoint)


def normalised(differences: dict[str, Tensor], endpoint: Path) -> Direction:
    """Return the direction of differences theta_f - theta_0 by name, which are divided in place.

    Raises:
        EndpointError: there is no difference, or it is not finite.
    """
    squares = {name: squared_norm(tensor) for name, tensor in differences.items()}
    distance = math.sqrt(sum(squares.values()))
    if not math.isfinite(distance):
        raise EndpointError(f"{endpoint} contains weights that are not finite. Use another endpoint.")
    if distance == 0.0:
        raise EndpointError(
            f"{endpoint} does not differ from the base model, so it has no direction. Use a fine-tuned endpoint."
        )
    tensors = {name: tensor.div_(distance) for name, tensor in differences.items() if squares[name] > 0.0}
    return Direction(tensors, distance)


def _differences(started: dict[str, Weight], arrived: dict[str, Weight], endpoint: Path) -> dict[str, Tensor]:
    """Return theta_f - theta_0 by name, in the memory of the endpoint's tensors; both inputs are consumed.

    Raises:
        EndpointError: the tensors differ by name or shape, or are tied differently.
    """
    names, others = ({weight.names for weight in side.values()} for side in (started, arrived))
    if names != others:
        raise EndpointError(
            f"{endpoint} does not have the base model's tensors: it lacks {some(_flat(names - others))} and adds "
            f"{some(_flat(others - names))} (tied tensors count as one). Use a fine-tuned copy of the base model."
        )
    shapes = [
        f"{name} {tuple(arrived[name].tensor.shape)} instead of {tuple(weight.tensor.shape)}"
        for name, weight in started.items()
        if arrived[name].tensor.shape != weight.tensor.shape
    ]
    if shapes:
        raise EndpointError(
            f"{endpoint} has tensors with other shapes than the base model: {some(shapes)}. Use an endpoint that was "
            "fine-tuned without changing the vocabulary or the layers."
        )
    return {name: arrived.pop(name).tensor.sub_(started.pop(name).tensor) for name in list(started)}


def _load(folder: Path, trust_remote_code: bool) -> tuple[dict[str, Weight], set[str]]:
    """Load a model folder in fp32 on the CPU; also return the tensor names in its files that the model does not have.

    Raises:
        EndpointError: the files do not match the folder's configuration.
        LoadingError: the configuration cannot be used.
    """
    config = load_config(folder, trust_remote_code)
    loader: Any = AutoModelForImageTextToText if reads_images(config) else AutoModelForCausalLM
    try:
        model, unexpected = load_whole(
            loader, folder, "a language model", dtype=torch.float32, trust_remote_code=trust_remote_code
        )
    except LoadingError as error:
        raise EndpointError(str(error)) from error
    return weights_of(model), unexpected


def lora_products(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield scale x B A, in fp32, with the name of the weight that it is added to.

    Raises:
        EndpointError: the adapter is not plain LoRA.
    """
    settings = json.loads((folder / ADAPTER_SETTINGS).read_text())
    unlike = [
        name
        for name, holds in {
            f"peft_type {settings.get('peft_type')}": settings.get("peft_type") != "LORA",
            "use_dora": settings.get("use_dora"),
            "modules_to_save": settings.get("modules_to_save"),
            "alora_invocation_tokens": settings.get("alora_invocation_tokens"),
            f"bias {settings.get('bias')}": settings.get("bias", "none") != "none",
            f"init_lora_weights {settings.get('init_lora_weights')}": settings.get("init_lora_weights")
            not in PLAIN_STARTS,
        }.items()
        if holds
    ]
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise EndpointError(f"{folder} has no {ADAPTER_WEIGHTS}. Save the adapter as safetensors.")
    with safe_open(path, framework="pt") as file:
        modules, strange = _factors(file.keys())
        if unlike or strange:
            raise EndpointError(
                f"the adapter in {folder} is not plain LoRA ({some(unlike or strange)}). Merge it into the base model "
                "and use the merged model's folder as the endpoint."
            )
        for module, keys in modules.items():
            down, up = (file.get_tensor(keys[factor]).to(torch.float32) for factor in "AB")
            if down.ndim != 2:
                raise EndpointError(
                    f"the adapter in {folder} changes {module}, which is not a linear layer. Merge it into the base "
                    "model and use the merged model's folder as the endpoint."
                )
            product = (up @ down).mul_(_scale(settings, module, len(down)))
            yield f"{module}.weight", product.T.contiguous() if settings.get("fan_in_fan_out") else product


def _factors(keys: list[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return the keys of both factors by module, and the keys that are not factors or lack their counterpart."""
    modules: dict[str, dict[str, str]] = {}
    strange = []
    for key in keys:
        found = FACTOR.fullmatch(key)
        if found is None:
            strange.append(key)
        else:
            modules.setdefault(found["module"], {})[found["factor"]] = key
    strange += [key for pair in modules.values() if len(pair) == 1 for key in pair.values()]
    return modules, strange


def _scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """Return the factor on B A: alpha / r, or alpha / sqrt(r) (rsLoRA), with the module's alpha from the patterns."""
    alpha = settings["lora_alpha"]
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        # As peft matches them: the end of the module's path, whole names only.
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def squared_norm(tensor: Tensor) -> float:
    """Return the sum of squares, in fp64."""
    return sum(float(part.double().square().sum()) for part in tensor.flatten().split(SLICE))


def _flat(names: set[tuple[str, ...]]) -> list[str]:
    return ["=".join(group) for group in names]
