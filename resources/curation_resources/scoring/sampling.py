"""Drawing tokens in generation: each answer by its own seed, whichever others share its batch.

transformers draws for a whole batch from one stream, so that an answer depends on what is asked beside it. Here every
answer has a stream of uniform numbers of its own, by seed and name, and a token is where its number falls among the
summed probabilities (inverse transform sampling).
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
    """Leaves one token of each row possible, the drawn one, so that the likeliest is that.

    Args:
        sampling: temperature and top_p.
        numbers: of each row its uniform numbers [B, steps].
        prompt: tokens that stand before the first drawn one, padding included.
    """

    def __init__(self, sampling: Sampling, numbers: Sequence[npt.NDArray[np.float64]], prompt: int) -> None:
        self._sampling, self._numbers, self._prompt = sampling, np.stack(numbers), prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: D102 - transformers' own signature
        step = input_ids.shape[1] - self._prompt
        uniform = torch.from_numpy(self._numbers[:, step]).to(scores.device)
        drawn = draw(scores, uniform, self._sampling)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn[:, None], 0.0)


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """The token of each row [B] where its number falls among the summed probabilities.

    Tokens stand in the order of their numbers, so that rounding of the logits moves borders and swaps no places.

    Args:
        logits: [B, V].
        uniform: a number of each row in [0, 1) [B].
        sampling: temperature and top_p.
    """
    # Doubles: a number just below 1 must not fall behind the last token.
    chances = torch.softmax(logits.double() / sampling.temperature, dim=-1)
    if sampling.top_p < 1.0:
        ordered, places = chances.sort(dim=-1, descending=True, stable=True)
        # A token stays if those before it do not hold the share yet: the likeliest always does.
        kept = ordered.cumsum(dim=-1) - ordered < sampling.top_p
        chances = torch.zeros_like(chances).scatter_(1, places, torch.where(kept, ordered, 0.0))
    summed = chances.cumsum(dim=-1)
    found = torch.searchsorted(summed, (uniform.double() * summed[:, -1])[:, None], right=True)[:, 0]
    # The last token with a chance, where rounding put the number at the very end.
    return torch.minimum(found, _last_possible(chances))


def _last_possible(chances: Tensor) -> Tensor:
    """The last token of each row [B] that has a chance."""
    backwards = (chances.flip(-1) > 0.0).to(torch.int8).argmax(dim=-1)
    return chances.shape[-1] - 1 - backwards
