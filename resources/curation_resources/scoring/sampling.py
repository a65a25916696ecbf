"""Sample tokens in generation with a separate seed per answer, whatever other answers share its batch.

transformers draws for a whole batch from one stream, so an answer depends on the others in its batch. Here each answer
has its own stream of uniform numbers, by seed and name, and its next token is found by inverse transform sampling: it
is
the token at which the cumulative probability passes the uniform number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import LogitsProcessor

from curation_resources.scoring.spec import Sampling


class DrawTokens(LogitsProcessor):
    """Leaves only the drawn token of each row possible, so that greedy decoding picks it.

    Args:
        sampling: temperature and top_p.
        numbers: uniform numbers of each row [B, steps].
        prompt: tokens before the first drawn one, padding included.
    """

    def __init__(self, sampling: Sampling, numbers: Sequence[npt.NDArray[np.float64]], prompt: int) -> None:
        self._sampling, self._numbers, self._prompt = sampling, np.stack(numbers), prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: D102 - transformers' own signature
        step = input_ids.shape[1] - self._prompt
        uniform = torch.from_numpy(self._numbers[:, step]).to(scores.device)
        drawn = draw(scores, uniform, self._sampling)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn[:, None], 0.0)


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Return the token of each row [B] at which the cumulative probability passes its uniform number.

    Tokens are ordered by id, so rounding of the logits moves boundaries but never swaps tokens.

    Args:
        logits: [B, V].
        uniform: one number per row in [0, 1) [B].
        sampling: temperature and top_p.
    """
    # In fp64, so that a number just below 1 does not pass the last token.
    chances = torch.softmax(logits.double() / sampling.temperature, dim=-1)
    if sampling.top_p < 1.0:
        ordered, places = chances.sort(dim=-1, descending=True, stable=True)
        # A token stays if those before it do not reach the share yet; the likeliest always stays.
        kept = ordered.cumsum(dim=-1) - ordered < sampling.top_p
        chances = torch.zeros_like(chances).scatter_(1, places, torch.where(kept, ordered, 0.0))
    summed = chances.cumsum(dim=-1)
    found = torch.searchsorted(summed, (uniform.double() * summed[:, -1])[:, None], right=True)[:, 0]
    # Fall back to the last possible token if rounding put the number at the very end.
    return torch.minimum(found, _last_possible(chances))


def _last_possible(chances: Tensor) -> Tensor:
    """Return the last token of each row [B] with a nonzero probability."""
    backwards = (chances.flip(-1) > 0.0).to(torch.int8).argmax(dim=-1)
    return chances.shape[-1] - 1 - backwards
