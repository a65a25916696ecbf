"""What a run trains on: encoded samples, the weight of every token's loss, and which samples make which batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from curation_resources.errors import UserError
from curation_resources.scoring.samples import UNRUNNABLE, Encoded, Sample

if TYPE_CHECKING:
    from curation_resources.scoring.encoding import Encoder
    from curation_resources.training.recipe import Recipe

EPOCH_STRIDE = 1_000_003
"""Between the seeds of two epochs: neighbouring seeds of runs share no order."""
GROUPED_BATCHES = 50
"""Batches whose samples are sorted by length among one another."""


class TrainingError(UserError):
    """A training run cannot start, or diverged."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss of tokens, by sample_id; of what is not named the weight is 1.

    Attributes:
        tokens: of every token of the response; one that is beyond them, as EOS is, has weight 1.
        steps: by segment index (steps from 1 on, the answer 0), of every token of the segment.
    """

    tokens: Mapping[str, Sequence[float]] = field(default_factory=dict)
    steps: Mapping[str, Mapping[int, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """A sample to train on.

    Attributes:
        encoded: its tokens.
        weights: of the losses of its response and EOS [len - prompt_tokens]; None: all 1.
    """

    encoded: Encoded
    weights: list[float] | None = None

    @property
    def labels(self) -> int:
        """Tokens that carry loss: the response and EOS; the very first token of a sequence is predicted by nothing."""
        return len(self.encoded) - max(1, self.encoded.prompt_tokens)


def encode_for_training(encoder: Encoder, samples: Sequence[Sample]) -> list[Encoded]:
    """The samples as tokens, by the encoder that they are measured with.

    Text only: samples with images are left out, and so are those that no signal is measured of (`UNRUNNABLE`).
    """
    encoded = encoder.encode([sample for sample in samples if not sample.images])
    return [item for item in encoded if item.response_tokens > 0 and UNRUNNABLE.keys().isdisjoint(item.flags)]


def make_examples(encoded: Sequence[Encoded], weights: LossWeights | None) -> list[Example]:
    """Examples with the weights of their tokens.

    Raises:
        TrainingError: a sample has more weights than tokens, or one that is negative or not finite.
    """
    if weights is None:
        return [Example(item) for item in encoded]
    return [Example(item, _weights_of(item, weights)) for item in encoded]


def _weights_of(encoded: Encoded, weights: LossWeights) -> list[float]:
    name = encoded.sample.sample_id
    made = [1.0] * (len(encoded) - encoded.prompt_tokens)
    own = list(weights.tokens.get(name, ()))
    # A response that was cut has fewer tokens than weights; one that was not must have as many.
    whole = not {"truncated", "answer_truncated", "response_truncated"} & set(encoded.flags)
    if own and whole and len(own) != encoded.response_tokens:
        raise TrainingError(
            f"sample {name}: {len(own)} weights for {encoded.response_tokens} response tokens; they must be made with "
            "the same tokenizer, template and maximum length"
        )
    for place, weight in enumerate(own[: encoded.response_tokens]):
        made[place] *= weight
    for place, segment in enumerate(encoded.segment_of_token[encoded.prompt_tokens :]):
        made[place] *= weights.steps.get(name, {}).get(segment, 1.0)
    if not all(0.0 <= weight < float("inf") for weight in made):
        raise TrainingError(f"sample {name}: a weight of its loss is negative or not finite")
    return made


def order_of_epoch(lengths: Sequence[int], recipe: Recipe, epoch: int) -> list[int]:
    """The order of samples in an epoch: the same for equal seeds on every machine."""
    import torch

    generator = torch.Generator().manual_seed(recipe.seed + EPOCH_STRIDE * epoch)
    if not recipe.length_grouped:
        order: list[int] = torch.randperm(len(lengths), generator=generator).tolist()
        return order
    from transformers.trainer_pt_utils import get_length_grouped_indices

    return list(get_length_grouped_indices(list(lengths), recipe.batch_size, GROUPED_BATCHES, generator))


def steps_in_epoch(count: int, batch_size: int) -> int:
    """Optimizer steps in which so many samples are gone through once."""
    return -(-count // batch_size)


def steps_of(count: int, recipe: Recipe) -> int:
    """Optimizer steps of a run over so many samples."""
    steps = steps_in_epoch(count, recipe.batch_size) * recipe.epochs
    return steps if recipe.max_steps is None else min(steps, recipe.max_steps)
