"""The synthetic task that finds retrieval heads: copy the value of a key out of a JSON object.

Source: AttentionInfluence, arXiv 2505.07293: a long JSON object of random key-value pairs, a few solved queries, then
one more. Keys are random hexadecimal digits and values are random words (ours).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from curation_resources.scoring.errors import ScoringError

LEAST_PAIRS = 4
"""Fewest pairs of a prompt: one for each solved query and one for the query itself."""

SOLVED = 3
"""Solved queries before the one whose answer counts."""

_WORDS = (
    "river stone lamp garden winter paper silver horse window bread music forest bottle summer copper island "
    "candle pencil market bridge cotton mirror valley basket engine button orange saddle hammer pepper rabbit "
    "temple violet wagon yellow anchor barrel carpet desert flower"
)
WORDS = tuple(_WORDS.split())
VALUE_WORDS = 4


class RetrievalError(ScoringError):
    """The retrieval heads of a model cannot be found."""


@dataclass(frozen=True)
class RetrievalSpec:
    """The settings that determine the retrieval heads of a model.

    Attributes:
        heads: share of the attention heads to mask, at least one head.
        prompts: prompts over which the scores of heads are averaged.
        pairs: pairs of the JSON object; fewer if the context is too short.
        length: longest prompt in tokens, answer included; at most the longest sequence that is measured.
        seed: seed of keys, values and queries.
    """

    heads: float = 0.05
    prompts: int = 32
    pairs: int = 48
    length: int = 4096
    seed: int = 0


@dataclass(frozen=True)
class RetrievalPrompt:
    """A prompt with its answer, as tokens.

    Attributes:
        input_ids: the whole text.
        answer: positions of the answer's tokens, ascending, at least one.
        source: positions of the same tokens in the JSON object.
    """

    input_ids: list[int]
    answer: list[int]
    source: list[int]


@dataclass(frozen=True)
class RetrievalText:
    """A prompt with its answer as text, and the places of the answer.

    Attributes:
        text: the prompt, up to the quotation mark that ends the answer.
        value: the answer.
        answer_start: first character of the answer.
        source_start: first character of the same value in the JSON object.
    """

    text: str
    value: str
    answer_start: int
    source_start: int


def retrieval_prompts(tokenizer: Any, spec: RetrievalSpec, max_length: int, vocabulary: int) -> list[RetrievalPrompt]:
    """Return the prompts of a spec as tokens.

    Args:
        tokenizer: a fast tokenizer.
        spec: number and size of the prompts.
        max_length: longest sequence of the model in tokens.
        vocabulary: number of tokens that the model has.

    Raises:
        RetrievalError: the context is too short, or the tokenizer is not suitable.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise RetrievalError(
            "attention_influence needs the character offsets of a fast tokenizer. Use a model with a tokenizer.json."
        )
    limit = min(spec.length, max_length)
    return [_fitting(tokenizer, spec, number, limit, vocabulary) for number in range(spec.prompts)]


def retrieval_text(seed: int, number: int, pairs: int) -> RetrievalText:
    """Return one prompt as text; the same on every machine.

    The queried pairs are drawn from all pairs, so that answers lie anywhere in the object.
    """
    # A string as seed is hashed with SHA-512, independently of PYTHONHASHSEED.
    rng = random.Random(f"{seed}/{number}/{pairs}")
    keys: dict[str, None] = {}
    values: dict[str, None] = {}
    while len(keys) < pairs:
        keys[f"{rng.getrandbits(64):016x}"] = None
    while len(values) < pairs:
        values[" ".join(WORDS[int(rng.random() * len(WORDS))] for _ in range(VALUE_WORDS))] = None
    members = list(zip(keys, values, strict=True))
    queried: list[int] = []
    while len(queried) <= SOLVED:
        place = int(rng.random() * pairs)
        if place not in queried:
            queried.append(place)
    *solved, asked = (members[place] for place in queried)
    key, value = asked
    text = json.dumps(dict(members)) + "\n"
    # Keys are hexadecimal and values are words, so no value occurs within a key or twice in the object.
    source_start = text.index(f'"{value}"') + 1
    text += "".join(f'"{one}": "{its}"\n' for one, its in solved) + f'"{key}": "'
    return RetrievalText(f'{text}{value}"', value, len(text), source_start)


def _fitting(tokenizer: Any, spec: RetrievalSpec, number: int, limit: int, vocabulary: int) -> RetrievalPrompt:
    """Return the prompt of a number with as many pairs as fit."""
    pairs = spec.pairs
    while True:
        made = retrieval_text(spec.seed, number, pairs)
        encoded = tokenizer(made.text, return_offsets_mapping=True, verbose=False)
        ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
        if len(ids) <= limit:
            break
        if pairs == LEAST_PAIRS:
            raise RetrievalError(
                f"attention_influence needs a longer context: its shortest prompt has {len(ids)} tokens of this "
                f"tokenizer, and {limit} are allowed. Raise the target's max_length and attention_influence.length, or "
                "use a model with a longer context."
            )
        pairs = max(LEAST_PAIRS, min(pairs - 1, pairs * limit // len(ids)))
    if ids and max(ids) >= vocabulary:
        raise RetrievalError(
            f"attention_influence cannot be measured: the tokenizer produces token {max(ids)}, and the model has "
            f"{vocabulary}. Use the tokenizer that belongs to the model."
        )
    answer, source = _aligned(made, ids, offsets)
    if not answer:
        raise RetrievalError(
            "attention_influence cannot be measured: the tokenizer splits a value differently in the JSON object and "
            "in the answer, so that no token of the answer can be copied. Use another model."
        )
    return RetrievalPrompt(ids, answer, source)


def _aligned(
    made: RetrievalText, ids: Sequence[int], offsets: Sequence[tuple[int, int]]
) -> tuple[list[int], list[int]]:
    """Return the positions of the answer's tokens, and those of the same tokens in the object.

    A token that is split differently in the two places does not count, nor does one that reaches beyond the value.
    """
    in_source = _within(made.source_start, len(made.value), ids, offsets)
    in_answer = _within(made.answer_start, len(made.value), ids, offsets)
    shared = [part for part in in_answer if part in in_source]
    return [in_answer[part] for part in shared], [in_source[part] for part in shared]


def _within(
    start: int, length: int, ids: Sequence[int], offsets: Sequence[tuple[int, int]]
) -> dict[tuple[int, int, int], int]:
    """Return the position of each token within a span of text, by its place in the span and its id."""
    return {
        (begin - start, end - start, token): position
        for position, (token, (begin, end)) in enumerate(zip(ids, offsets, strict=True))
        if start <= begin < end <= start + length
    }
