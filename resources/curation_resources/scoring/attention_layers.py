"""Locate a decoder's attention projections: q, k, v and o of every layer, by name or as parts of a fused layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from curation_resources.scoring.errors import ScoringError
from curation_resources.scoring.spec import PROJECTIONS

SEPARATE = {"q": ("q_proj",), "k": ("k_proj",), "v": ("v_proj",), "o": ("o_proj", "out_proj", "dense", "c_proj")}
BEHIND_ONE_ANOTHER = {"phi3": "qkv_proj", "gpt2": "c_attn"}
"""By family, the fused layer that stacks all of q, then k, then v."""

HEAD_BY_HEAD = {"gpt_neox": "query_key_value", "bloom": "query_key_value"}
"""By family, the fused layer that interleaves q, k and v head by head."""


class AttentionError(ScoringError):
    """The attention projections of a model cannot be identified."""


@dataclass(frozen=True)
class Projections:
    """The attention projections of one decoder layer.

    Attributes:
        layers: the linear layers, by projection; a fused one is `qkv`.
        sizes: output sizes of q, k and v in a fused layer that stacks them.
        heads: number of heads in a fused layer that interleaves them.
    """

    layers: Mapping[str, nn.Module]
    sizes: tuple[int, int, int] | None = None
    heads: int | None = None

    def split(self, name: str, gradients: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each projection with its part of a layer's output gradients [B, T, d_out]."""
        if name != "qkv":
            yield name, gradients
            return
        if self.sizes is not None:
            yield from zip("qkv", gradients.split(self.sizes, dim=-1), strict=True)
            return
        assert self.heads is not None
        by_head = gradients.unflatten(-1, (self.heads, 3, -1))
        for place, projection in enumerate("qkv"):
            yield projection, by_head[..., place, :].flatten(-2)


def attention_projections(decoder: nn.Module, config: Any) -> list[Projections]:
    """Return the projections of every layer of a model's text decoder, first to last.

    Raises:
        AttentionError: a layer's projections have unknown names, or sizes that do not add up.
    """
    config = config.get_text_config(decoder=True)
    return [_of_block(block, config, number) for number, block in enumerate(decoder_blocks(decoder, config))]


def decoder_blocks(decoder: nn.Module, config: Any) -> nn.ModuleList:
    """Return the text decoder's layers. A vision tower's list has another name or another length.

    Raises:
        AttentionError: there is no such list.
    """
    count = int(config.get_text_config(decoder=True).num_hidden_layers)
    lists = [(name, one) for name, one in decoder.named_modules() if isinstance(one, nn.ModuleList)]
    found = [one for name, one in lists if len(one) == count and not {"vision", "visual"} & set(_words(name))]
    if not found:
        raise AttentionError(f"{type(decoder).__name__} is not supported: it has no list of {count} layers")
    return found[0]


def _words(name: str) -> list[str]:
    return name.replace("_", ".").split(".")


def _of_block(block: nn.Module, config: Any, number: int) -> Projections:
    linear = {name: one for name, one in block.named_modules() if is_linear(one)}
    attention = {name: one for name, one in linear.items() if "attn" in name.lower() or "attention" in name.lower()}
    by_name = {name.rsplit(".", 1)[-1]: one for name, one in (attention or linear).items()}
    found = {p: by_name[name] for p, names in SEPARATE.items() for name in names[::-1] if name in by_name}
    if set(found) == set(PROJECTIONS):
        return Projections(found)
    family = str(config.model_type)
    fused = by_name.get({**BEHIND_ONE_ANOTHER, **HEAD_BY_HEAD}.get(family, ""))
    if fused is None or "o" not in found:
        raise AttentionError(
            f"layer {number} of this {family} model has {', '.join(sorted(by_name)) or 'no linear layer'}; its "
            "attention projections cannot be identified. Supported names are q_proj, k_proj, v_proj and o_proj (or "
            f"out_proj, dense, c_proj), and the fused layers of {', '.join([*BEHIND_ONE_ANOTHER, *HEAD_BY_HEAD])}"
        )
    layers, heads = {"qkv": fused, "o": found["o"]}, int(config.num_attention_heads)
    if family in HEAD_BY_HEAD:
        return Projections(layers, heads=heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    kv = int(getattr(config, "num_key_value_heads", None) or heads) * width
    return Projections(layers, sizes=(heads * width, kv, kv))


def is_linear(module: nn.Module) -> bool:
    """Return True for linear layers, including those wrapped by an adapter (peft), but not for a router of experts."""
    inner = getattr(module, "base_layer", module)
    return isinstance(inner, nn.Linear) or type(inner).__name__ == "Conv1D"


def is_of_experts(name: str) -> bool:
    """Return True if a layer is an expert, which sees some of the tokens, in its own order."""
    return "experts" in name.split(".")


def by_sample(values: Tensor, samples: int, longest: int) -> Tensor | None:
    """Return a layer's values as [B, T, d], also for models that concatenate the samples; None if neither shape fits.

    Experts that are layers of their own see some tokens of all samples, in their own order.

    Args:
        values: [B, T, d] or [B * T, d].
        samples: B.
        longest: T.
    """
    if values.dim() == 2 and len(values) == samples * longest:
        rows: Tensor = values.view(samples, longest, -1)
        return rows
    return values if values.dim() == 3 and values.shape[:2] == (samples, longest) else None
