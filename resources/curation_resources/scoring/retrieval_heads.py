"""Find a model's retrieval heads, and run the model with their attention replaced by uniform weights.

Source: AttentionInfluence, arXiv 2505.07293. Both look at the inputs of the model's own attention function: queries and
keys for the scores of heads, values for their average. So the other heads are computed exactly as without masking,
whatever the attention implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from curation_resources.scoring.attention_layers import decoder_blocks
from curation_resources.scoring.loading import Checkpoint
from curation_resources.scoring.retrieval_task import (
    RetrievalError,
    RetrievalPrompt,
    RetrievalSpec,
    retrieval_prompts,
)

HeadIndex = tuple[int, int]
"""Layer and query head, both from 0."""


@dataclass(frozen=True)
class AttentionCall:
    """The inputs of the attention function in one layer of the text decoder.

    Attributes:
        layer: the layer, from 0.
        query: [B, H, T, d].
        key: [B, H_kv, T, d], where H_kv divides H.
        value: [B, H_kv, T, d_v].
        mask: boolean (True is visible) or additive mask [B or 1, H or 1, T, T]; None for a causal mask.
        options: further arguments.
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    options: Mapping[str, Any]

    @property
    def is_plainly_causal(self) -> bool:
        """True if every position sees all positions up to its own."""
        window = self.options.get("sliding_window")
        return self.mask is None and (window is None or window >= self.value.shape[2])

    def shared(self, heads: Sequence[int]) -> list[int]:
        """Return the key-value head that each query head uses."""
        group = self.query.shape[1] // self.value.shape[1]
        return [head // group for head in heads]

    def visible(self, rows: Tensor) -> Tensor:
        """Return the visible positions [B or 1, H or 1, R, T] of these query positions [R]."""
        if self.mask is not None:
            if self.mask.dim() != 4:
                raise RetrievalError(
                    f"attention_influence does not support this model's attention mask of shape {list(self.mask.shape)}"
                )
            chosen: Tensor = self.mask[:, :, rows, : self.value.shape[2]]
            return chosen if chosen.dtype == torch.bool else chosen > torch.finfo(chosen.dtype).min / 2
        behind = rows[:, None] - torch.arange(self.value.shape[2], device=rows.device)
        window = self.options.get("sliding_window")
        seen = behind >= 0 if window is None else (behind >= 0) & (behind < window)
        return seen[None, None]

    def weights(self, rows: Tensor) -> Tensor:
        """Return the attention weights [B, H, R, T] of these query positions [R] in fp32."""
        query = self.query[:, :, rows].float()
        key = self.key[:, self.shared(range(self.query.shape[1]))].float()
        scale = self.options.get("scaling") or self.query.shape[-1] ** -0.5
        logits = query @ key.transpose(2, 3) * scale
        cap = self.options.get("softcap")
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        logits = logits.masked_fill(~self.visible(rows), -torch.inf)
        sinks = self.options.get("s_aux")
        if sinks is not None:
            # A logit of each head that takes attention from all positions (gpt-oss).
            extra = sinks.float().reshape(1, -1, 1, 1).expand(*logits.shape[:3], 1)
            logits = torch.cat([logits, extra], dim=-1)
        weights: Tensor = logits.softmax(dim=-1)[..., : self.key.shape[2]]
        return weights

    def averages(self, heads: Sequence[int]) -> Tensor:
        """Return the mean of the visible values at every position [B, T, heads, d_v] in fp32."""
        values = self.value[:, self.shared(heads)].float()
        rows = torch.arange(values.shape[2], device=values.device)
        if self.is_plainly_causal:
            return (values.cumsum(dim=2) / (rows + 1)[:, None]).transpose(1, 2)
        seen = self.visible(rows)
        seen = (seen if seen.shape[1] == 1 else seen[:, list(heads)]).float()
        return (seen / seen.sum(dim=-1, keepdim=True).clamp(min=1) @ values).transpose(1, 2)


Look = Callable[[AttentionCall, Tensor], None]
"""Takes a layer's inputs and the output [B, T, H, d_v] of its attention function, which it may change in place."""


@contextmanager
def observed_attention(checkpoint: Checkpoint, look: Look) -> Iterator[None]:
    """Call `look` after the attention function of every layer of a checkpoint's text decoder, inside this block.

    Other models, and vision towers, are left alone. Only for the decoder before compilation (`Checkpoint.uncompiled`).
    """
    blocks = decoder_blocks(checkpoint.uncompiled, checkpoint.model.config)
    layers = {id(module): number for number, block in enumerate(blocks) for module in block.modules()}
    plain = AttentionInterface.get_interface

    def get_interface(self: AttentionInterface, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
        function = plain(self, name, default)

        def run(
            module: Any,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Tensor | None,
            *more: Any,
            **named: Any,
        ) -> Any:
            result = function(module, query, key, value, attention_mask, *more, **named)
            layer = layers.get(id(module))
            if layer is not None:
                look(AttentionCall(layer, query, key, value, attention_mask, named), result[0])
            return result

        return run

    AttentionInterface.get_interface = get_interface  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        AttentionInterface.get_interface = plain  # type: ignore[method-assign]


def head_scores(checkpoint: Checkpoint, prompts: Sequence[RetrievalPrompt]) -> dict[HeadIndex, float]:
    """Return the score of every head: the attention that it puts on the place to copy from.

    This is the attention of the position that predicts a token of the answer, on the place of this token in the
    context, averaged over the answer's tokens, then over prompts.

    Raises:
        RetrievalError: the model does not use the attention functions of transformers, or a score is not finite.
    """
    sums: dict[int, Tensor] = {}
    for prompt in prompts:
        rows = torch.tensor(prompt.answer, device=checkpoint.device) - 1
        places = torch.tensor(prompt.source, device=checkpoint.device)

        def look(call: AttentionCall, _output: Tensor, rows: Tensor = rows, places: Tensor = places) -> None:
            weights = call.weights(rows)[0].gather(2, places.expand(call.query.shape[1], -1)[..., None])
            mean = weights.squeeze(-1).double().mean(dim=1).cpu()
            sums[call.layer] = sums.get(call.layer, torch.zeros_like(mean)) + mean

        ids = torch.tensor([prompt.input_ids], device=checkpoint.device)
        with torch.inference_mode(), observed_attention(checkpoint, look):
            checkpoint.uncompiled(input_ids=ids, use_cache=False)
    name = type(checkpoint.model).__name__
    if not sums:
        raise RetrievalError(
            f"attention_influence does not support {name}: it computes attention without the attention functions of "
            "transformers, so its heads cannot be masked. Use another model."
        )
    scores = {
        (layer, head): float(total) / len(prompts)
        for layer, totals in sorted(sums.items())
        for head, total in enumerate(totals)
    }
    if not all(torch.tensor(list(scores.values())).isfinite()):
        raise RetrievalError(f"the attention of {name} on the retrieval task is not finite. Use dtype: float32.")
    return scores


def strongest(scores: Mapping[HeadIndex, float], share: float) -> tuple[HeadIndex, ...]:
    """Return a share of the heads, rounded, at least one: the highest scores first, ties by layer and head."""
    count = max(1, int(share * len(scores) + 0.5))
    return tuple(sorted(scores, key=lambda head: (-scores[head], head))[:count])


@contextmanager
def masked_heads(checkpoint: Checkpoint, heads: Sequence[HeadIndex]) -> Iterator[None]:
    """Replace the attention weights of these heads by uniform ones over the visible positions, inside this block.

    Padding after a sample is not visible, because attention is causal. See `observed_attention`.
    """
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, []).append(head)

    def look(call: AttentionCall, output: Tensor) -> None:
        masked = by_layer.get(call.layer)
        if masked:
            output[:, :, masked] = call.averages(masked).to(output.dtype)

    with observed_attention(checkpoint, look):
        yield


class RetrievalHeads:
    """Finds the retrieval heads of a checkpoint on first use, and keeps them.

    Args:
        checkpoint: the model.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._found: dict[RetrievalSpec, tuple[HeadIndex, ...]] = {}

    def heads(self, spec: RetrievalSpec) -> tuple[HeadIndex, ...]:
        """Return the heads to mask, strongest first.

        Raises:
            RetrievalError: they cannot be found.
        """
        if spec not in self._found:
            own = self.checkpoint
            prompts = retrieval_prompts(own.tokenizer, spec, own.max_length, own.vocabulary)
            self._found[spec] = strongest(head_scores(own, prompts), spec.heads)
        return self._found[spec]
