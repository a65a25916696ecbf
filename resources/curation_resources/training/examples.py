"""Training data of a run: encoded samples, token weights, and the assignment of samples to batches."""

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
"""Difference between the seeds of two epochs, so that runs with neighbouring seeds share no order."""
GROUPED_BATCHES = 50
"""Number of batches whose samples are sorted by length together."""


class TrainingError(UserError):
    """A training run cannot start, or diverged."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of token losses, by sample_id; unnamed samples have weight 1.

    Attributes:
        tokens: one weight for each token of the response; tokens after it, such as EOS, have weight 1.
        steps: weights by segment index (steps from 1 on, the answer 0), applied to all tokens of the segment.
    """

    tokens: Mapping[str, Sequence[float]] = field(default_factory=dict)
    steps: Mapping[str, Mapping[int, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """A sample to train on.

    Attributes:
        encoded: its tokens.
        weights: loss weights of its response and EOS [len - prompt_tokens]; None: all 1.
    """

    encoded: Encoded
    weights: list[float] | None = None

    @property
    def labels(self) -> int:
        """The number of tokens that carry loss: the response and EOS, but never the first token of a sequence."""
        return len(self.encoded) - max(1, self.encoded.prompt_tokens)


def encode_for_training(encoder: Encoder, samples: Sequence[Sample]) -> list[Encoded]:
    """Tokenize samples with the encoder that also measures them.

    Text only: samples with images are skipped, and so are those that cannot be measured (`UNRUNNABLE`).
    """
    encoded = encoder.encode([sample for sample in samples if not sample.images])
    return [item for item in encoded if item.response_tokens > 0 and UNRUNNABLE.keys().isdisjoint(item.flags)]


def make_examples(encoded: Sequence[Encoded], weights: LossWeights | None) -> list[Example]:
    """Return examples with token weights.

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
    # A truncated response has fewer tokens than weights; a complete one must have equally many.
    whole = not {"truncated", "answer_truncated", "response_truncated"} & set(encoded.flags)
    if own and whole and len(own) != encoded.response_tokens:
        raise TrainingError(
            f"sample {name}: {len(own)} weights for {encoded.response_tokens} response tokens. Make the weights with "
            "the run's tokenizer, template and maximum length."
        )
    for place, weight in enumerate(own[: encoded.response_tokens]):
        made[place] *= weight
    for place, segment in enumerate(encoded.segment_of_token[encoded.prompt_tokens :]):
        made[place] *= weights.steps.get(name, {}).get(segment, 1.0)
    if not all(0.0 <= weight < float("inf") for weight in made):
        raise TrainingError(f"sample {name}: a loss weight is negative or not finite")
    return made


def order_of_epoch(lengths: Sequence[int], recipe: Recipe, epoch: int) -> list[int]:
    """Return the order of samples in an epoch: identical for equal seeds on every machine."""
    import torch

    generator = torch.Generator().manual_seed(recipe.seed + EPOCH_STRIDE * epoch)
    if not recipe.length_grouped:
        order: list[int] = torch.randperm(len(lengths), generator=generator).tolist()
        return order
    from transformers.trainer_pt_utils import get_length_grouped_indices

    return list(get_length_grouped_indices(list(lengths), recipe.batch_size, GROUPED_BATCHES, generator))


def steps_in_epoch(count: int, batch_size: int) -> int:
    """Return the optimizer steps of one epoch."""
    return -(-count // batch_size)


def steps_of(count: int, recipe: Recipe) -> int:
    """Return the optimizer steps of a run."""
    steps = scheduled_steps(count, recipe)
    return steps if recipe.stop_after is None else min(steps, recipe.stop_after)


def scheduled_steps(count: int, recipe: Recipe) -> int:
    """Return the optimizer steps that a run's schedule is made for."""
    steps = steps_in_epoch(count, recipe.batch_size) * recipe.epochs
    return steps if recipe.max_steps is None else min(steps, recipe.max_steps)
