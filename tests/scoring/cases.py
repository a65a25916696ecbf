"""Samples for the scoring tests, and the slow, obvious way to measure them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from resources.scoring.forward import segment_order
from resources.scoring.loading import Checkpoint
from resources.scoring.samples import ANSWER, Encoded, Sample, Segment


def make_sample(steps: Sequence[str], answer: str | None, prompt: str = "How many?", name: str = "s") -> Sample:
    """A sample whose response is its steps, a line each, and `Answer: ...`."""
    text = ""
    segments = []
    for number, step in enumerate(steps, 1):
        segments.append(Segment(number, len(text), len(text) + len(step)))
        text += step + "\n"
    if answer is not None:
        text += "Answer: "
        segments.append(Segment(ANSWER, len(text), len(text) + len(answer)))
        text += answer
    return Sample(name, [{"role": "user", "content": prompt}], text, segments)


def random_samples(count: int, seed: int = 0) -> list[Sample]:
    """Samples of very different lengths and numbers of steps."""
    rng = random.Random(seed)
    words = [
        "add",
        "two",
        "to",
        "the",
        "sum",
        "of",
        "all",
        "pears",
        "and",
        "take",
        "away",
        "half",
        "×",
        "3",
        "=",
        "12",
        "größer",
    ]
    made = []
    for number in range(count):
        steps = [" ".join(rng.choices(words, k=rng.randint(3, 9))) for _ in range(rng.randint(1, 6))]
        made.append(make_sample(steps, str(rng.randint(0, 999)), " ".join(rng.choices(words, k=4)), f"s{number}"))
    return made


def naive_gradients(checkpoint: Checkpoint, encoded: Encoded) -> Tensor:
    """G [K+1, d] by the definition: one sample alone, full logits, one token after another."""
    ids = torch.tensor([encoded.input_ids])
    with torch.no_grad():
        hidden = checkpoint.decoder(input_ids=ids).last_hidden_state[0]
    rows = []
    for segment in segment_order(encoded):
        per_token = []
        for position, owner in enumerate(encoded.segment_of_token):
            if owner != segment:
                continue
            probabilities = F.softmax(checkpoint.head.weight @ hidden[position - 1], dim=0)
            target = F.one_hot(torch.tensor(encoded.input_ids[position]), len(probabilities))
            per_token.append((probabilities - target) @ checkpoint.head.weight)
        rows.append(torch.stack(per_token).mean(dim=0))
    return torch.stack(rows)


def autograd_gradients(checkpoint: Checkpoint, encoded: Encoded) -> Tensor:
    """G [K+1, d] by autograd: of each segment's mean loss, with respect to a bias on the final hidden state."""
    ids = torch.tensor([encoded.input_ids])
    with torch.no_grad():
        hidden = checkpoint.decoder(input_ids=ids).last_hidden_state[0]
    head = checkpoint.head
    rows = []
    for segment in segment_order(encoded):
        bias = torch.zeros(hidden.shape[1], requires_grad=True)
        logits = head.scale * F.linear(hidden + bias, head.weight, head.bias)
        if head.soft_cap is not None:
            logits = head.soft_cap * torch.tanh(logits / head.soft_cap)
        positions = [p for p, owner in enumerate(encoded.segment_of_token) if owner == segment]
        targets = torch.tensor([encoded.input_ids[p] for p in positions])
        loss = F.cross_entropy(logits[torch.tensor(positions) - 1], targets)
        (gradient,) = torch.autograd.grad(loss, bias)
        rows.append(gradient)
    return torch.stack(rows)
