"""The response alone: how likely the model finds it without its prompt (IFD's second pass).

The same tokens as in the conditional pass, cut at the same length, whatever the tokenizer would make of the text
alone; no BOS stands before them. So the first token is predicted by nothing, and IFD leaves it out of both passes
(Cherry LLM, arXiv 2308.12032; Superfiltering, arXiv 2402.00530).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from curation_resources.scoring.samples import NON_FINITE, Encoded, SampleSignals

LEAST_TOKENS = 2
"""A response of one token has none that could be predicted without the prompt."""


def without_prompt(encoded: Encoded) -> Encoded:
    """The response's tokens as a sequence of their own."""
    end = encoded.prompt_tokens + encoded.response_tokens
    ids = encoded.input_ids[encoded.prompt_tokens : end]
    return Encoded(encoded.sample, ids, 0, len(ids), [-1] * len(ids))


def add_unconditional(results: Sequence[SampleSignals], alone: Sequence[SampleSignals]) -> list[SampleSignals]:
    """Results with what the pass without prompts gave of the same samples."""
    added = []
    for result, own in zip(results, alone, strict=True):
        nll = None if own.token_nll is None else float(np.mean(own.token_nll, dtype=np.float64))
        flags = result.flags
        if nll is None and NON_FINITE not in flags:
            flags = [*flags, NON_FINITE]
        added.append(replace(result, unconditional_nll=nll, unconditional_tokens=own.tokens, flags=flags))
    return added
