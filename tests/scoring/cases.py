"""Samples for the scoring tests, and the slow, obvious way to measure them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from curation_resources.scoring.labels import segment_order
from curation_resources.scoring.loading import Checkpoint
from curation_resources.scoring.samples import ANSWER, Encoded, PrefixWindows, Request, Sample, SampleSignals, Segment

ALL_SIGNALS = Request(
    step_gradients="bias",
    likelihoods=True,
    segment_likelihoods=True,
    sequence_likelihoods=True,
    embeddings=frozenset(("mean", "last", "position_weighted")),
    token_likelihoods=True,
    unconditional=True,
    direct=frozenset(("", "### Response:")),
    sequence_uncertainty=True,
    error_norms=True,
    prefix_losses=PrefixWindows((4, 100, 1000)),
)


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


def packed(gradients: Tensor) -> Any:
    """The packed upper triangle of G G^T, to compare with."""
    gram = gradients.double() @ gradients.double().T
    upper = torch.triu_indices(len(gram), len(gram))
    return pytest.approx(gram[upper[0], upper[1]].tolist(), rel=1e-4, abs=1e-5 * float(gram.abs().max()))


@dataclass
class NaiveStatistics:
    """What `naive_statistics` gives, under the names of `SampleSignals`."""

    likelihoods: dict[str, float]
    segment_nll: list[float]
    sequence_likelihoods: dict[str, float]
    embeddings: dict[str, np.ndarray]
    token_nll: list[float]
    unconditional_nll: float | None
    sequence_uncertainty: dict[str, float]
    error_norm: float
    prefix_nll: dict[int, float]


def naive_statistics(checkpoint: Checkpoint, encoded: Encoded) -> NaiveStatistics:
    """Likelihoods and embeddings by their definitions: one sample alone, one token after another, in fp64."""
    with torch.no_grad():
        hidden = checkpoint.decoder(input_ids=torch.tensor([encoded.input_ids])).last_hidden_state[0].double()
    losses: dict[int, float] = {}
    response: dict[str, list[float]] = {"nll": [], "entropy": [], "least_confidence": [], "margin": [], "error": []}
    end = encoded.prompt_tokens + encoded.response_tokens
    for position in range(max(1, encoded.prompt_tokens), len(encoded)):
        p = F.softmax(checkpoint.head.weight.double() @ hidden[position - 1], dim=0)
        losses[position] = -float(p[encoded.input_ids[position]].log())
        if position < end:
            ordered = sorted(p.tolist(), reverse=True)
            response["nll"].append(losses[position])
            response["entropy"].append(-sum(x * float(np.log(x)) for x in ordered if x > 0))
            response["least_confidence"].append(1 - ordered[0])
            response["margin"].append(ordered[0] - ordered[1])
            target = F.one_hot(torch.tensor(encoded.input_ids[position]), len(p))
            response["error"].append(float((p - target).norm()))
    windows = list(losses.values())
    states = hidden.numpy()
    weights = np.arange(1, len(states) + 1) / sum(range(1, len(states) + 1))
    return NaiveStatistics(
        likelihoods={
            "mean_nll": float(np.mean(response["nll"])),
            "first_nll": response["nll"][0],
            "first_100_nll": float(np.mean(windows[: min(100, len(windows))])),
            "first_1000_nll": float(np.mean(windows[: min(1000, len(windows))])),
            "mean_entropy": float(np.mean(response["entropy"])),
            "least_confidence": float(np.mean(response["least_confidence"])),
            "mean_margin": float(np.mean(response["margin"])),
        },
        segment_nll=[
            float(np.mean([losses[p] for p, owner in enumerate(encoded.segment_of_token) if owner == segment]))
            for segment in segment_order(encoded)
        ],
        sequence_likelihoods=_naive_sequence(checkpoint, encoded, hidden),
        embeddings={
            "mean": states.mean(axis=0),
            "last": states[-1],
            "position_weighted": sum(weights[t] * states[t] for t in range(len(states))),
        },
        token_nll=response["nll"],
        unconditional_nll=_naive_unconditional(checkpoint, encoded.input_ids[encoded.prompt_tokens : end]),
        sequence_uncertainty=_naive_uncertainty(checkpoint, hidden),
        error_norm=float(np.mean(response["error"])),
        prefix_nll=naive_prefix_losses(losses, encoded, PrefixWindows((4, 100, 1000))),
    )


def _naive_sequence(checkpoint: Checkpoint, encoded: Encoded, hidden: Tensor) -> dict[str, float]:
    """Means over every token but the first, one after another."""
    found: dict[str, list[float]] = {
        "sequence_nll": [],
        "sequence_entropy": [],
        "largest_logit": [],
        "logit_margin": [],
    }
    for position in range(1, len(encoded)):
        logits = checkpoint.head.weight.double() @ hidden[position - 1]
        p = F.softmax(logits, dim=0)
        ordered = sorted(logits.tolist(), reverse=True)
        found["sequence_nll"].append(-float(p[encoded.input_ids[position]].log()))
        found["sequence_entropy"].append(-sum(x * float(np.log(x)) for x in p.tolist() if x > 0))
        found["largest_logit"].append(ordered[0])
        found["logit_margin"].append(ordered[0] - ordered[1])
    return {name: float(np.mean(values)) for name, values in found.items()}


def _naive_uncertainty(checkpoint: Checkpoint, hidden: Tensor) -> dict[str, float]:
    """Means over every position, one after another."""
    found: dict[str, list[float]] = {"entropy": [], "largest_logit": [], "logit_margin": []}
    for state in hidden:
        logits = checkpoint.head.weight.double() @ state
        ordered = sorted(logits.tolist(), reverse=True)
        found["entropy"].append(-sum(x * float(np.log(x)) for x in F.softmax(logits, dim=0).tolist() if x > 0))
        found["largest_logit"].append(ordered[0])
        found["logit_margin"].append(ordered[0] - ordered[1])
    return {name: float(np.mean(values)) for name, values in found.items()}


def _naive_unconditional(checkpoint: Checkpoint, ids: list[int]) -> float | None:
    """Mean NLL of a response's tokens but the first, each predicted by a run over those before it alone."""
    losses = []
    for position in range(1, len(ids)):
        with torch.no_grad():
            hidden = checkpoint.decoder(input_ids=torch.tensor([ids[:position]])).last_hidden_state[0, -1].double()
        p = F.softmax(checkpoint.head.weight.double() @ hidden, dim=0)
        losses.append(-float(p[ids[position]].log()))
    return float(np.mean(losses)) if losses else None


def naive_direct_answer(checkpoint: Checkpoint, response: str, prefix: str) -> float:
    """Mean NLL of a response's tokens as a text of its own, as transformers computes it from labels."""
    ids = checkpoint.tokenizer(prefix + response, return_tensors="pt").input_ids
    labels = ids.clone()
    labels[:, : len(checkpoint.tokenizer(prefix).input_ids)] = -100
    with torch.no_grad():
        return float(checkpoint.model(input_ids=ids, labels=labels).loss)


def naive_prefix_losses(losses: dict[int, float], encoded: Encoded, windows: PrefixWindows) -> dict[int, float]:
    """l_N from the loss of every token by its position: walk through the response until N tokens are counted."""
    found = {}
    for length in windows.lengths:
        counted: list[float] = []
        for position, loss in losses.items():
            is_eos = position >= encoded.prompt_tokens + encoded.response_tokens
            if len(counted) == length or (windows.reasoning_only and encoded.segment_of_token[position] == ANSWER):
                break
            if not (windows.skip_template_tokens and (is_eos or position in encoded.tag_tokens)):
                counted.append(loss)
        found[length] = sum(counted) / len(counted)
    return found


def assert_same_signals(found: SampleSignals, expected: SampleSignals) -> None:
    """Everything that is text or a count is equal, every number to 1e-5 of its scale."""
    plain = ("sample_id", "position", "prompt_tokens", "response_tokens", "step_indices", "segment_tokens")
    for name in (*plain, "flags", "gradient_flags", "prefix_flags"):
        assert getattr(found, name) == getattr(expected, name), name
    measured = (
        "step_gradients",
        "likelihoods",
        "segment_nll",
        "sequence_likelihoods",
        "token_nll",
        "unconditional_nll",
        "sequence_uncertainty",
        "error_norm",
        "prefix_nll",
    )
    for name in measured:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if one is not None:
            numbers = [vars(one), vars(other)] if hasattr(one, "__dict__") else [one, other]
            for first, second in zip(*map(_columns, numbers), strict=True):
                scale = float(np.abs(second).max(initial=0.0))
                np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-5 * scale, err_msg=name)
    assert found.direct.keys() == expected.direct.keys()
    for prefix, answer in found.direct.items():
        assert replace(answer, nll=expected.direct[prefix].nll) == expected.direct[prefix]
        np.testing.assert_allclose(answer.nll, expected.direct[prefix].nll, rtol=1e-5)
    assert found.embeddings.keys() == expected.embeddings.keys()
    for pooling, vector in found.embeddings.items():
        scale = float(np.abs(expected.embeddings[pooling]).max())
        np.testing.assert_allclose(vector, expected.embeddings[pooling], rtol=1e-5, atol=1e-5 * scale)


def _columns(values: Any) -> list[np.ndarray]:
    if isinstance(values, dict):
        return [np.atleast_1d(value) for value in values.values()]
    return [np.asarray(values)]
