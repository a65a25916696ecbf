"""Gram matrices of the proxy gradients that GRACE uses for segments.

Source: GRACE, arXiv 2605.13130, Eq. 9 and 11, and its variants. With h_t the final hidden state, u_t the loss's
gradient
with respect to it and r_t = J * (p_t - y_t):

    bias      g(T) = mean of u_t            the paper's choice: the gradient of a bias added to h
    linear    g(T) = mean of u_t h_t^T      of a linear map of h
    lm_head   g(T) = mean of r_t h_t^T      of the LM head itself

The last two are never materialized: <g(S), g(T)> = mean over i in S, j in T of (a_i . a_j) (h_i . h_j), with a = u or
r.
Their cost grows with the square of the sample's labelled tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from curation_resources.scoring.head import StreamedHead, vocabulary_slices

BLOCK_ROWS = 1024
"""Rows of the token-by-token matrices to materialize at once, where blocks are possible."""


def gram_of_gradients(gradients: Tensor) -> Tensor:
    """Return M = G G^T [S, S] in fp64 for mean proxy gradients G [S, d]."""
    exact = gradients.to(torch.float64)
    return exact @ exact.T


def linear_gram(head: StreamedHead, hidden: Tensor, targets: Tensor, segment_rows: Sequence[int]) -> Tensor:
    """Return M [S, S] in fp64 of the `linear` proxy for one sample.

    Args:
        head: the LM head.
        hidden: final hidden states of the sample's labelled tokens [N, d], sorted by segment.
        targets: their tokens [N].
        segment_rows: number of rows of each segment; they add up to N.
    """
    gradients = head.token_gradients(hidden, targets)
    states = hidden.to(torch.float32)
    weights = _segment_weights(segment_rows, hidden.device)
    gram = torch.zeros(len(segment_rows), len(segment_rows), dtype=torch.float64, device=hidden.device)
    for start in range(0, len(hidden), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        products = (gradients[rows] @ gradients.T) * (states[rows] @ states.T)
        gram += weights[:, rows] @ (products.to(torch.float64) @ weights.T)
    return gram


def lm_head_gram(head: StreamedHead, hidden: Tensor, targets: Tensor, segment_rows: Sequence[int]) -> Tensor:
    """Return M [S, S] in fp64 of the `lm_head` proxy for one sample; arguments as for `linear_gram`.

    Residuals are multiplied slice by slice of the vocabulary, which needs an [N, N] matrix and every row's normaliser
    beforehand.
    """
    states = hidden.to(torch.float32)
    products = residual_products(head, hidden, targets) * (states @ states.T)
    weights = _segment_weights(segment_rows, hidden.device)
    return weights @ (products.to(torch.float64) @ weights.T)


def residual_products(head: StreamedHead, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return r_i . r_j of all label rows [N, N] in fp32, r = J * (p - y)."""
    normaliser = head.normalisers(hidden, targets)
    layer = head.head
    products = torch.zeros(len(hidden), len(hidden), dtype=torch.float32, device=hidden.device)
    rows = torch.arange(len(hidden), device=hidden.device)
    # Two buffers of [N, slice] with as many elements as the head's chunks.
    size = max(1, head.rows * len(layer.weight) // max(1, len(hidden)))
    for part in vocabulary_slices(layer.weight, min(size, len(layer.weight))):
        logits = layer.uncapped(hidden, part)
        jacobian: Tensor | float = layer.scale
        if layer.soft_cap is not None:
            saturation = torch.tanh(logits / layer.soft_cap)
            logits, jacobian = layer.soft_cap * saturation, layer.scale * (1.0 - saturation.square())
        residual = torch.exp(logits - normaliser.maximum.unsqueeze(1)) / normaliser.total.unsqueeze(1)
        inside = (targets >= part.start) & (targets < part.stop)
        # Minus the other probabilities, which does not cancel if the target is likely.
        own = -(normaliser.others / normaliser.total)[inside]
        residual[rows[inside], targets[inside] - part.start] = own
        residual *= jacobian
        products += residual @ residual.T
    return products


def _segment_weights(segment_rows: Sequence[int], device: torch.device) -> Tensor:
    """Return A [S, N] in fp64 with A x = the mean of x over every segment's rows."""
    counts = torch.tensor(segment_rows, device=device)
    owners = torch.repeat_interleave(torch.arange(len(segment_rows), device=device), counts)
    weights = torch.zeros(len(segment_rows), len(owners), dtype=torch.float64, device=device)
    weights[owners, torch.arange(len(owners), device=device)] = 1.0 / counts[owners].to(torch.float64)
    return weights
