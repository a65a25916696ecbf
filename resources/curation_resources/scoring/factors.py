"""Per-sample gradients of linear layers as their two factors, from one backward pass over a whole batch.

For a layer z = x W^T, the loss's gradient is G = D^T X, where X [T, d_in] is the layer's input and D [T, d_out] the
loss's gradient with respect to its output. Hooks capture both during the backward pass, hand them on and free them, so
no weight's gradient is ever materialized. In a right-padded batch each sample's G is independent, since the loss is a
sum over samples and nothing after a sample's last label has a gradient. Weights are frozen, so the graph starts at the
embeddings and keeps only the activations that the backward pass needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from curation_resources.scoring.attention_layers import by_sample, is_of_experts
from curation_resources.scoring.collating import collate
from curation_resources.scoring.errors import ScoringError
from curation_resources.scoring.head import StreamedHead
from curation_resources.scoring.loading import Checkpoint
from curation_resources.scoring.samples import Encoded

Take = Callable[[str, Tensor, Tensor], None]
"""Receives a layer's name, inputs [B, T, d_in] and output gradients [B, T, d_out], which are freed afterwards."""


class GradientError(ScoringError):
    """The requested gradients cannot be computed."""


class Taker(NamedTuple):
    """A consumer of one backward pass.

    Attributes:
        layers: linear layers of the decoder, by the name that is passed to `take`.
        take: processes a layer's factors.
    """

    layers: Mapping[str, nn.Module]
    take: Take


@dataclass(frozen=True)
class ResponseLabels:
    """The hidden states of a batch that predict the tokens with a loss.

    Attributes:
        rows: the sample of each label [N], ascending.
        positions: position of the hidden state that predicts it [N].
        targets: the token [N].
        counts: labels of every sample [B].
    """

    rows: Tensor
    positions: Tensor
    targets: Tensor
    counts: Tensor


def reaches(batch: Sequence[Encoded]) -> list[int]:
    """Return for each sample one past the last position with a gradient, which predicts the response's last token."""
    return [encoded.prompt_tokens + encoded.response_tokens - 1 for encoded in batch]


def response_labels(batch: Sequence[Encoded], device: torch.device, with_eos: bool = False) -> ResponseLabels:
    """Return labels of the responses' tokens, and of EOS if requested and not cut off.

    The first token of a sequence has no prediction.
    """
    ends = map(len, batch) if with_eos else (reach + 1 for reach in reaches(batch))
    spans = [range(max(1, one.prompt_tokens), end) for one, end in zip(batch, ends, strict=True)]
    return _labels(batch, spans, device)


def segment_labels(encoded: Encoded, segments: Sequence[int], device: torch.device) -> ResponseLabels:
    """Return labels of one segment per copy of a sample; segments are given by index."""
    tokens = [[at for at, owner in enumerate(encoded.segment_of_token) if owner == index and at] for index in segments]
    return _labels([encoded] * len(segments), tokens, device)


def _labels(batch: Sequence[Encoded], spans: Sequence[Sequence[int]], device: torch.device) -> ResponseLabels:
    """Return labels of the given token positions of every sample."""
    rows = [row for row, span in enumerate(spans) for _ in span]
    positions = [at - 1 for span in spans for at in span]
    targets = [one.input_ids[at] for one, span in zip(batch, spans, strict=True) for at in span]
    made = [torch.tensor(one, device=device) for one in (rows, positions, targets, list(map(len, spans)))]
    return ResponseLabels(*made)


def backward(
    checkpoint: Checkpoint,
    head: StreamedHead,
    batch: Sequence[Encoded],
    takers: Sequence[Taker],
    labels: ResponseLabels | None = None,
) -> Tensor:
    """Run one forward and one backward pass of the sum over samples of the mean loss of their labels.

    The loss's gradient at the last hidden state comes from the LM head's formula, a chunk of logits at a time; only the
    decoder is differentiated by autograd.

    Args:
        checkpoint: the weights, in eval mode.
        head: its LM head, streamed.
        batch: samples with at least one label each.
        takers: consumers of the backward pass.
        labels: at least one per sample; default: the responses' tokens.

    Returns:
        Each sample's mean loss [B] in fp32, in nats.

    Raises:
        GradientError: a layer does not see the tokens of every sample (an expert).
    """
    labels = labels or response_labels(batch, checkpoint.device)
    counts = labels.counts
    with hooked(takers, (len(batch), max(map(len, batch)))), started_at_embeddings(checkpoint), torch.enable_grad():
        hidden: Tensor = checkpoint.uncompiled(**collate(batch, checkpoint.device), use_cache=False).last_hidden_state
        # The head's buffers may have been made in inference mode by a forward pass.
        with torch.inference_mode():
            states = hidden[labels.rows, labels.positions]
            nll = torch.empty(len(states), device=states.device)
            shares = head.token_gradients(states, labels.targets, nll) / counts[labels.rows].unsqueeze(1)
        with torch.no_grad():
            gradient = torch.zeros_like(hidden)
            gradient[labels.rows, labels.positions] = shares.to(hidden.dtype)
        hidden.backward(gradient)
    losses = torch.zeros(len(batch), device=checkpoint.device)
    with torch.no_grad():
        return losses.index_add_(0, labels.rows, nll) / counts


@contextmanager
def hooked(takers: Sequence[Taker], shape: tuple[int, int]) -> Iterator[None]:
    """Pass the factors of layers to the takers during a backward pass over [B, T] tokens.

    Raises:
        GradientError: a layer does not see the tokens of every sample.
    """

    def capture(taker: Taker, name: str, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        own = None if is_of_experts(name) else by_sample(inputs[0].detach(), *shape)
        if own is None:
            raise GradientError(
                f"layer {name} sees {tuple(inputs[0].shape)}, not the tokens of every sample (experts do not), so "
                "per-sample gradients cannot be computed. Take gradients with respect to an adapter of the "
                "attention (targets.gradients.weights: adapter, warmup.lora_modules)."
            )
        output.register_hook(partial(_pass_on, taker.take, name, own, shape))

    pairs = [(taker, name, module) for taker in takers for name, module in taker.layers.items()]
    handles = [module.register_forward_hook(partial(capture, taker, name)) for taker, name, module in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pass_on(take: Take, name: str, inputs: Tensor, shape: tuple[int, int], gradients: Tensor) -> None:
    own = by_sample(gradients.detach(), *shape)
    assert own is not None, "a linear layer keeps the number of rows"
    with torch.no_grad():
        take(name, inputs, own)


@contextmanager
def started_at_embeddings(checkpoint: Checkpoint) -> Iterator[None]:
    """Start graphs at the input embeddings, since all weights are frozen (`load_checkpoint`)."""
    embeddings: nn.Module = checkpoint.model.get_input_embeddings()

    def start(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output.detach().requires_grad_(True)

    handle = embeddings.register_forward_hook(start)
    try:
        yield
    finally:
        handle.remove()
