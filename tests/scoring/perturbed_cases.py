"""Models and endpoints for the tests of perturbed checkpoints, and the slow, obvious way to perturb and measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from curation_resources.scoring.loading import Checkpoint, load_checkpoint
from curation_resources.scoring.noise import Noise, draw
from curation_resources.scoring.samples import Encoded, PrefixWindows
from tests.models import byte_tokenizer, write_tiny_model
from tests.scoring.cases import naive_prefix_losses
from tests.scoring.test_prefixes import slow_losses

Weights = dict[str, Tensor]


def write_tied_model(folder: Path, seed: int = 0) -> Path:
    """A random Qwen2 model whose LM head is its embedding."""
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.3,
        eos_token_id=0,
        pad_token_id=1,
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def read_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The whole model as transformers loads it."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)


def change_weights(source: Path, folder: Path, change: Callable[[str, Tensor], Tensor]) -> Path:
    """A copy of a model folder with changed weights."""
    model = read_model(source)
    for name, weight in model.named_parameters():
        weight.copy_(change(name, weight))
    model.save_pretrained(folder)
    return folder


def write_endpoint(base: Path, folder: Path, size: float = 0.01, seed: int = 1) -> Path:
    """A copy of a model whose every tensor has moved a little."""
    generator = torch.Generator().manual_seed(seed)
    return change_weights(
        base, folder, lambda _name, weight: weight + size * torch.randn(weight.shape, generator=generator)
    )


def write_adapter(base: Path, folder: Path, **settings: Any) -> Any:
    """A random LoRA adapter in a folder; returns the peft model."""
    import peft

    torch.manual_seed(2)
    options: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 12,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    } | settings
    adapted = peft.get_peft_model(read_model(base), peft.LoraConfig(**options))
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.05)
    adapted.save_pretrained(str(folder))
    return adapted


def parameters(model: Any) -> Weights:
    """Copies of all parameters, tied ones once, under the name that `named_parameters` gives."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def seeding_name(model: Any, name: str) -> str:
    """The name that a tensor's noise is seeded with: the first in order of all that it has."""
    wanted = dict(model.named_parameters())[name]
    names: list[str] = [other for other, weight in model.named_parameters(remove_duplicate=False) if weight is wanted]
    return min(names)


def naive_path(model: Any, endpoint: Weights, sizes: Sequence[float], seed: int) -> list[Weights]:
    """theta_1, theta_2, ... by the formula: theta_j = theta_{j-1} + lambda_j (1 + xi_j) * e, step by step, in fp64."""
    start = {name: weight.double() for name, weight in parameters(model).items()}
    difference = {name: endpoint[name].double() - weight for name, weight in start.items()}
    norm = torch.sqrt(sum((each.square().sum() for each in difference.values()), torch.zeros(())))
    theta, path = start, []
    for step, size in enumerate(sizes, 1):
        moved = {}
        for name, weight in theta.items():
            noise = draw(Noise(seed, f"step {step}", seeding_name(model, name)), weight.numel())
            xi = torch.from_numpy(noise).double().view(weight.shape)
            moved[name] = weight + size * (1.0 + xi) * (difference[name] / norm)
        theta = moved
        path.append(theta)
    return path


def naive_random(model: Any, scales: Sequence[float], seed: int) -> Weights:
    """theta_0 plus Gaussian draws of these deviations one after another, but for names with "embed"; in fp64."""
    moved = {}
    for name, weight in parameters(model).items():
        moved[name] = weight.double()
        for number, scale in enumerate(scales, 1):
            noise = torch.from_numpy(draw(Noise(seed, f"random {number}", seeding_name(model, name)), weight.numel()))
            if "embed" not in name:
                moved[name] = moved[name] + scale * noise.double().view(weight.shape)
    return moved


def naive_losses(
    folder: Path, weights: Weights, encoded: Sequence[Encoded], windows: PrefixWindows
) -> list[dict[int, float]]:
    """Early losses by plain transformers with these weights, each sample alone and whole."""
    model = read_model(folder)
    for name, weight in model.named_parameters():
        weight.copy_(weights[name])
    return [naive_prefix_losses(slow_losses(model, item), item, windows) for item in encoded]


def loaded(folder: Path, dtype: str = "float32") -> Checkpoint:
    """The model as it is measured."""
    return load_checkpoint(folder, device="cpu", dtype=dtype)


def tiny(folder: Path, hidden: int = 32) -> Path:
    """The tiny model of the fixtures, in a folder and size of one's own."""
    return write_tiny_model(folder, hidden=hidden)
