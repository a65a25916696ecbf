"""Results of one sample, with a class for each signal that is more than a number: plain data, no tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class StepGradients:
    """GRACE's signal for one sample: see `curation_resources.scoring.proxies`.

    Attributes:
        gram: upper triangle by rows of M [K+1, K+1], the answer last.
        norms: square roots of M's diagonal [K+1].
    """

    gram: list[float]
    norms: list[float]


@dataclass(frozen=True)
class GradientSpectra:
    """Statistics of the singular values of a sample's gradients (arXiv 2504.10766): see `scoring.spectra`.

    Lists are by layer, first to last, then by projection: q, k, v, o. None if a gradient is zero, or if the shapes of a
    comparison differ.

    Attributes:
        nuclear_norm: N [L][4].
        effective_rank: R [L][4].
        rows: T [L][4], positions with a gradient.
        largest_rank: min(T, d_out, d_in) [L][4], the upper bound of R.
        same_layer: cosines of q with o and of k with v [L][2].
        adjacent: cosine of each projection with that of the layer above [L-1][4].
    """

    nuclear_norm: list[list[float]]
    effective_rank: list[list[float | None]]
    rows: list[list[int]]
    largest_rank: list[list[int]]
    same_layer: list[list[float | None]]
    adjacent: list[list[float | None]]


@dataclass(frozen=True, eq=False)
class GradientFeatures:
    """A sample's gradient as one short vector: see `curation_resources.scoring.features`.

    Attributes:
        values: [k] in int8.
        scale: factor from int8 to the gradient's scale; 0 for a zero gradient.
    """

    values: npt.NDArray[np.int8]
    scale: float


@dataclass(frozen=True)
class Judgement:
    """A judge's verdict on a sample's prompt or response.

    Attributes:
        value: the requested number; None if the reply has none.
        reply: the full reply.
        tokens: tokens of question and reply; 0 for a cached reply.
        names: names of the tags.
    """

    value: int | None
    reply: str
    tokens: int
    names: list[str]


@dataclass(frozen=True)
class Solved:
    """A model's own answers to a sample's prompt, compared with the sample's reference.

    Attributes:
        rate: share of right answers; None if it is not known.
        stated: the answer that each text states; None for a text that states none, which is wrong.
        right: number of right answers.
        tokens: tokens of prompts and answers; 0 for answers that were asked for before.
        flags: why there is no rate, or warnings about it.
        refusal: the endpoint's message, if it refused the prompt.
    """

    rate: float | None
    stated: list[str | None]
    right: int
    tokens: int
    flags: list[str]
    refusal: str | None = None


@dataclass(frozen=True)
class DirectAnswer:
    """The likelihood of a response as a text of its own, as IFD's released code measures it.

    Attributes:
        nll: mean of -log p over its tokens, in nats; the first token counts only if something precedes it.
        after_special: whether the tokenizer put a special token (BOS) first.
        tokens: tokens run.
    """

    nll: float
    after_special: bool
    tokens: int


@dataclass(frozen=True)
class Likelihoods:
    """The model's likelihoods of a sample's response; nats, means over tokens.

    EOS counts in `first_100_nll` and `first_1000_nll` (TEMP's windows) and nowhere else.

    Attributes:
        mean_nll: mean of -log p(y_t) over the response.
        first_nll: -log p of its first token alone, which a pass without the prompt cannot predict (IFD).
        first_100_nll: over its first 100 tokens, or all if there are fewer.
        first_1000_nll: over its first 1,000 tokens, or all if there are fewer.
        mean_entropy: mean of H(p_t).
        least_confidence: mean of 1 - max p_t.
        mean_margin: mean of p_t's largest minus its second largest probability.
    """

    mean_nll: float
    first_nll: float
    first_100_nll: float
    first_1000_nll: float
    mean_entropy: float
    least_confidence: float
    mean_margin: float


@dataclass(frozen=True)
class ResponseLosses:
    """The losses of a response and its segments in one pass, in nats.

    Attributes:
        mean_nll: mean of -log p over the response's tokens, without EOS.
        segment_sums: sums of -log p over the tokens of each step, then of the answer if it has any.
    """

    mean_nll: float
    segment_sums: list[float]


@dataclass(frozen=True)
class SequenceLikelihoods:
    """The model's likelihoods of a whole sequence; means over all tokens but the first, which nothing predicts.

    Prompt tokens count like response tokens, including special tokens, EOS and image tokens.

    Attributes:
        sequence_nll: mean of -log p, in nats.
        sequence_entropy: mean of H(p_t), in nats.
        largest_logit: mean of the largest logit.
        logit_margin: mean of the largest minus the second largest logit.
    """

    sequence_nll: float
    sequence_entropy: float
    largest_logit: float
    logit_margin: float


@dataclass(frozen=True)
class SequenceUncertainty:
    """The model's uncertainty over a whole sequence; means over all positions, the one after the last token included.

    Attributes:
        entropy: mean of the entropy of the predicted distribution, in nats.
        largest_logit: mean of the largest logit.
        logit_margin: mean of the largest minus the second largest logit.
    """

    entropy: float
    largest_logit: float
    logit_margin: float
