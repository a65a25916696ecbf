"""Loading a checkpoint for measuring: its decoder, its LM head and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from resources.scoring.errors import ScoringError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LoadingError(ScoringError):
    """A model folder cannot be loaded for measuring."""


@dataclass(frozen=True)
class Head:
    """The LM head: logits z = soft_cap(scale * (W h + b)).

    Attributes:
        weight: W [V, d].
        bias: b [V] or None.
        scale: factor on the logits (Cohere's logit_scale, the inverse of Granite's logits_scaling).
        soft_cap: c of Gemma's c * tanh(z / c), or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    soft_cap: float | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model, ready to measure with.

    Attributes:
        decoder: gives `last_hidden_state` after the final norm.
        head: what turns it into logits.
        tokenizer: the folder's own fast tokenizer.
        device: where the weights are.
        max_length: longest context in tokens.
    """

    decoder: nn.Module
    head: Head
    tokenizer: Any
    device: torch.device
    max_length: int


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first CUDA device if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def load_checkpoint(
    folder: Path,
    adapter: Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "float32",
    max_length: int | None = None,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Load a model folder (safetensors only) with a LoRA adapter if there is one, and freeze it.

    The decoder and head are taken apart and held against the whole model on a few tokens: a family whose
    logits are made in a way that we do not know is refused, never measured wrongly.

    Args:
        folder: transformers model folder.
        adapter: peft LoRA folder; needs the `peft` package.
        device: `auto`, `cpu` or `cuda[:n]`.
        dtype: `float32`, `bfloat16` or `float16`.
        max_length: longest sequence in tokens; default and upper bound is the model's context.
        trust_remote_code: run Python code that the folder ships.

    Raises:
        LoadingError: the model has no decoder or LM head that we know how to take apart.
    """
    target = pick_device(device)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=DTYPES[dtype], use_safetensors=True, trust_remote_code=trust_remote_code
    )
    if adapter is not None:
        # Only runs with a warm-up checkpoint need peft.
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(model, str(adapter))
        # In half precision merging would round most of the adapter away: it stays beside the weights, in fp32.
        model = adapted.merge_and_unload() if dtype == "float32" else adapted.get_base_model()
    model = model.to(target).eval()
    model.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    context = context_length(model.config)
    checkpoint = Checkpoint(
        decoder=_decoder(model),
        head=_head(model),
        tokenizer=tokenizer,
        device=target,
        max_length=min(context, max_length or context),
    )
    _check_logits(model, checkpoint)
    return checkpoint


def context_length(config: Any) -> int:
    """Longest sequence that a model's configuration allows, in tokens; composite models keep it in their text part."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 2048)


def _decoder(model: Any) -> nn.Module:
    decoder = model.base_model
    if not isinstance(decoder, nn.Module) or decoder is model:
        raise LoadingError(f"{type(model).__name__} has no decoder apart from its LM head")
    return decoder


def _check_logits(model: Any, checkpoint: Checkpoint) -> None:
    """Hold decoder and head against the model's own logits on a few tokens."""
    ids = torch.arange(8, device=checkpoint.device).unsqueeze(0) % len(checkpoint.head.weight)
    head = checkpoint.head
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits.float()
        hidden = checkpoint.decoder(input_ids=ids, use_cache=False).last_hidden_state
        found = head.scale * nn.functional.linear(hidden, head.weight, head.bias).float()
        if head.soft_cap is not None:
            found = head.soft_cap * torch.tanh(found / head.soft_cap)
    tolerance = 1e-3 if head.weight.dtype == torch.float32 else 5e-2
    if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())):
        raise LoadingError(
            f"{type(model).__name__} makes its logits in a way that is not known here (a scale or cap that is "
            "not in its configuration?), so its gradients would be wrong"
        )


def _head(model: Any) -> Head:
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        raise LoadingError(f"{type(model).__name__} has no linear LM head")
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return Head(layer.weight.detach(), layer.bias, scale, float(cap) if cap else None)
