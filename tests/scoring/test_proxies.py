"""Gram matrices of all proxies against gradients that are really made, in fp64 by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from curation_resources.scoring import proxies
from curation_resources.scoring.head import Head, StreamedHead
from curation_resources.scoring.proxies import gram_of_gradients, linear_gram, lm_head_gram, residual_products
from tests.scoring.test_head import HEADS, gradients_of, make_head, rows_of, small_budget

COUNTS = [8, 1, 11]


def autograd_gram(head: Head, hidden: Tensor, targets: Tensor, proxy: str) -> Tensor:
    """M from every segment's own gradient, with respect to what the proxy says is trained."""
    states, weight = hidden.double(), head.weight.double()
    width = states.shape[1]
    gradients = []
    for rows, labels in zip(states.split(COUNTS), targets.split(COUNTS), strict=True):
        if proxy == "bias":
            trained = torch.zeros(width, dtype=torch.float64, requires_grad=True)
            inputs, matrix = rows + trained, weight
        elif proxy == "linear":
            trained = torch.eye(width, dtype=torch.float64, requires_grad=True)
            inputs, matrix = rows @ trained.T, weight
        else:
            trained = weight.clone().requires_grad_()
            inputs, matrix = rows, trained
        bias = None if head.bias is None else head.bias.double()
        logits = head.scale * F.linear(inputs, matrix, bias)
        if head.soft_cap is not None:
            logits = head.soft_cap * torch.tanh(logits / head.soft_cap)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels), trained)
        gradients.append(gradient.flatten())
    rows = torch.stack(gradients)
    return rows @ rows.T


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("proxy", ["bias", "linear", "lm_head"])
@pytest.mark.parametrize("chunk_rows", [3, 256])
def test_gram_equals_autograd(kind: str, proxy: str, chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxies, "BLOCK_ROWS", 7)
    head = make_head(kind)
    hidden, targets = rows_of(head, sum(COUNTS))
    streamed = small_budget(head, chunk_rows)
    if proxy == "bias":
        found = gram_of_gradients(gradients_of(streamed, hidden, targets, COUNTS))
    else:
        make: Any = linear_gram if proxy == "linear" else lm_head_gram
        found = make(streamed, hidden, targets, COUNTS)
    expected = autograd_gram(head, hidden, targets, proxy)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_residual_products_equal_the_expansion_in_fp64() -> None:
    head = make_head("plain")
    hidden, targets = rows_of(head, 25)
    targets[3] = targets[7]  # [y_i = y_j] has a part in it
    p = torch.softmax(hidden.double() @ head.weight.double().T, dim=-1)
    at = p[:, targets]
    same = (targets.unsqueeze(0) == targets.unsqueeze(1)).double()
    expected = p @ p.T - at - at.T + same
    found = residual_products(StreamedHead(head), hidden, targets)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_residual_products_of_confident_targets_do_not_cancel() -> None:
    streamed = StreamedHead(Head(torch.eye(3)))
    hidden = torch.tensor([[20.0, 0.0, 0.0], [0.0, 19.0, 0.0]])
    targets = torch.tensor([0, 1])
    residual = torch.softmax(hidden.double(), -1) - F.one_hot(targets, 3)
    found = residual_products(streamed, hidden, targets)
    torch.testing.assert_close(found.double(), residual @ residual.T, rtol=1e-4, atol=0.0)
