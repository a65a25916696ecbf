"""The likelihood of the response without its prompt (IFD's second pass).

It uses the same tokens as the conditional pass, truncated at the same length, whatever tokens the text alone would
have;
there is no BOS before them. So nothing predicts the first token, and IFD leaves it out of both passes (Cherry LLM,
arXiv
2308.12032; Superfiltering, arXiv 2402.00530).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from curation_resources.scoring.samples import NON_FINITE, Encoded, SampleSignals

LEAST_TOKENS = 2
"""A response of one token has none that can be predicted without the prompt."""


def without_prompt(encoded: Encoded) -> Encoded:
    """Return the response's tokens as a sequence of their own."""
    end = encoded.prompt_tokens + encoded.response_tokens
    ids = encoded.input_ids[encoded.prompt_tokens : end]
    return Encoded(encoded.sample, ids, 0, len(ids), [-1] * len(ids))


def add_unconditional(results: Sequence[SampleSignals], alone: Sequence[SampleSignals]) -> list[SampleSignals]:
    """Return results with those of the pass without prompts added."""
    added = []
    for result, own in zip(results, alone, strict=True):
        nll = None if own.token_nll is None else float(np.mean(own.token_nll, dtype=np.float64))
        flags = result.flags
        if nll is None and NON_FINITE not in flags:
            flags = [*flags, NON_FINITE]
        added.append(replace(result, unconditional_nll=nll, unconditional_tokens=own.tokens, flags=flags))
    return added
