"""Inputs of the comparisons: drawn from numpy's frozen generator, so that they are the same with every version."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.random import RandomState
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from tests.models import byte_tokenizer_with

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]


def sample_ids(count: int) -> pl.Series:
    """Return ids in ascending order, with well-mixed leading digits."""
    heads = np.sort(RandomState(count).randint(0, 2**52, count, dtype=np.int64))
    return pl.Series("sample_id", [f"{head:013x}{place:019x}" for place, head in enumerate(heads)])


@dataclass(frozen=True)
class TempInputs:
    """Early losses of a pool: at the random checkpoint [n], and l_100 and l_1000 along the path [n, 8]."""

    random: Floats
    early: Floats
    curve: Floats
    sources: Numbers
    domains: Numbers
    budget: int = 200


TEMP_SOURCES = (9, 20, 291, 580, 900, 1400, 2000, 2800)
"""Samples of each source; sources 0 to 2, 3 to 4, and 5 to 7 form the three domains."""


def temp_inputs() -> TempInputs:
    """Return 8,000 samples of eight sources whose losses rise along the path by different amounts."""
    draw = RandomState(17)
    sources = np.repeat(np.arange(8), TEMP_SOURCES)[draw.permutation(8000)].astype(np.int64)
    domains = np.array([0, 0, 0, 1, 1, 2, 2, 2])[sources]
    hard = draw.uniform(size=8000) < 0.4
    random = draw.normal(2.0, 0.3, 8000) + 1.5 * hard
    slope = 0.05 + 0.03 * sources[:, None] / 8 + 0.02 * hard[:, None]
    rise = np.cumsum(draw.normal(slope, 0.04, (8000, 8)), axis=1)
    start = draw.gamma(4.0, 0.4, (8000, 1))
    curve = start + rise
    early = curve + draw.normal(0.2, 0.02, (8000, 8)) + np.linspace(0.0, 0.1, 8)
    return TempInputs(random.astype(np.float32), early.astype(np.float32), curve.astype(np.float32), sources, domains)


@dataclass(frozen=True)
class S2LInputs:
    """Losses [n, T] at the checkpoints of a reference run, and the source of each sample."""

    losses: Floats
    sources: Numbers
    budgets: tuple[int, ...] = (300, 2990)
    clusters: int = 100


def s2l_inputs() -> S2LInputs:
    """Return 3,000 samples of four sources; clusters of one or two samples are frequent."""
    draw = RandomState(18)
    sources = np.repeat(np.arange(4), (30, 300, 900, 1770))[draw.permutation(3000)].astype(np.int64)
    fall = np.cumsum(draw.gamma(1.0, 0.1, (3000, 6)), axis=1)
    losses = draw.gamma(3.0, 0.8, (3000, 1)) - fall * draw.gamma(1.0, 1.0, (3000, 1))
    return S2LInputs(losses.astype(np.float32), sources)


@dataclass(frozen=True)
class TagcosInputs:
    """Gradient features in units of their scale, and the size of the run that they are measured along.

    Attributes:
        features: of each sample at each checkpoint [n, 3, k].
        trained_on: samples of the run, for which four epochs take 1,680 steps of 128 samples.
        clusters: K of k-means.
        budget: a twentieth of the samples; the size of every cluster is a multiple of 20.
    """

    features: NDArray[np.int8]
    trained_on: int = 53_760
    clusters: int = 12
    budget: int = 120


def tagcos_inputs() -> TagcosInputs:
    """Return 2,400 samples in twelve groups of different sizes."""
    draw = RandomState(19)
    sizes = (20, 60, 100, 120, 140, 160, 180, 200, 240, 300, 400, 480)
    centres = draw.normal(0.0, 1.0, (12, 3, 24)) + 4.0 * np.eye(12, 24)[:, None, :]
    groups = np.repeat(np.arange(12), sizes)[draw.permutation(2400)]
    rows = centres[groups] + draw.normal(0.0, 0.5, (2400, 3, 24))
    features = np.rint(rows / np.abs(rows).max(axis=2, keepdims=True) * 127.0).astype(np.int8)
    return TagcosInputs(features)


TEXTS = (
    ("Add 2 and 3.", "2 and 3 make 5.\nAnswer: 5"),
    ("Name a prime number above 10.", "10 is even. 11 has no divisor but 1 and itself.\nAnswer: 11"),
    ("Write the word tree backwards.", "t, r, e, e: e, e, r, t\nAnswer: eert"),
    ("How many legs do three cats have?", "One cat has 4 legs, so three cats have 3 * 4 = 12 legs.\nAnswer: 12"),
    ("Is 21 a multiple of 7?", "3 * 7 = 21, so it is.\nAnswer: yes"),
    ("Übersetze: Haus", "Haus heißt auf Englisch house.\nAnswer: house"),
    ("Sum the digits of 999.", "9 + 9 + 9 = 27\nAnswer: 27"),
    ("What comes after Monday?", "Tuesday"),
)
"""Instructions and responses."""

LONG_TEXT = ("Count to 300.", " ".join(map(str, range(1, 301))))
"""A response that is truncated at 1,024 tokens."""

VOCABULARY = 258


def write_model(folder: Path, bos: bool = False) -> Path:
    """Write a Llama model with drawn weights and a byte tokenizer, which begins every text with BOS if wanted."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    model = LlamaForCausalLM(config)
    draw = RandomState(20)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.dim() > 1:
                weight.copy_(torch.from_numpy(draw.normal(0.0, 0.3, tuple(weight.shape))))
    model.save_pretrained(folder)
    byte_tokenizer_with([], "", bos=bos).save_pretrained(folder)
    return folder


def token_ids(count: int, seed: int) -> list[list[int]]:
    """Return sequences of 5 to 60 tokens; none is special."""
    draw = RandomState(seed)
    return [draw.randint(2, VOCABULARY, draw.randint(5, 61)).tolist() for _ in range(count)]


@dataclass(frozen=True)
class LessInputs:
    """Gradient features [n, 4, k] of a pool and of three validation sets of four samples each [3, 4, 4, k].

    `weights` are LESS's own, one per checkpoint.
    """

    features: NDArray[np.int8]
    validation: NDArray[np.int8]
    weights: tuple[float, ...] = (1.6877e-05, 1.2859e-05, 7.7030e-06, 2.5616e-06)


def less_inputs() -> LessInputs:
    """Return 400 samples with features of 48 numbers."""
    draw = RandomState(21)
    features = draw.randint(-127, 128, (400, 4, 48)).astype(np.int8)
    return LessInputs(features, draw.randint(-127, 128, (3, 4, 4, 48)).astype(np.int8))


def embeddings(count: int, seed: int) -> Floats:
    """Return embeddings [n, 16] in groups of different density."""
    draw = RandomState(seed)
    centres = draw.normal(0.0, 2.0, (6, 16))
    return (
        centres[draw.randint(0, 6, count)] + draw.gamma(1.0, 0.5, (count, 1)) * draw.normal(size=(count, 16))
    ).astype(np.float32)
