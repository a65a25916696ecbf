"""Input and output of the scoring passes: plain data, no device tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from curation_resources.scoring.errors import ScoringError
from curation_resources.scoring.gradient_spec import FeatureSpec, GradientWeights
from curation_resources.scoring.results import (
    DirectAnswer,
    GradientFeatures,
    GradientSpectra,
    Judgement,
    Likelihoods,
    ResponseLosses,
    SequenceLikelihoods,
    SequenceUncertainty,
    Solved,
    StepGradients,
)
from curation_resources.scoring.retrieval_task import RetrievalSpec

ANSWER = 0
"""The segment index of the answer; steps count from 1."""

Proxy = Literal["bias", "linear", "lm_head", "projected"]
"""The gradient that represents a segment: see `scoring.proxies`.

`projected` is the gradient of the trained weights, from a backward pass for each segment
(`curation_resources.scoring.gradient_pass`).
"""

Pooling = Literal["mean", "last", "position_weighted", "text"]
"""The pooling of a sample into one vector: see `curation_resources.scoring.measuring.pool`.

`text` is an embedding model's own (`curation_resources.models.embedder`).
"""


AnswerPrefix = Literal["", "### Response:"]
"""Text before a response whose prompt is left out: none (Superfiltering), or Alpaca's heading (Cherry LLM)."""

Question = Literal["instruction_tags", "difficulty", "complexity", "quality"]
"""A judge's question about a prompt, or about the response to it: see `curation_resources.models.judge`."""


@dataclass(frozen=True)
class Segment:
    """A span of the response, in characters: a step (index 1..K) or the answer (index 0)."""

    index: int
    start: int
    end: int


@dataclass(frozen=True)
class ImageFile:
    """An image file at a relative path below a folder that it must not leave.

    Attributes:
        root: the folder.
        path: relative to it.
        digest: BLAKE2b-128 of the file's bytes in hex, if known; a file with another digest is not measured.
    """

    root: str
    path: str
    digest: str | None = None


ImageSource = ImageFile | bytes | str
"""An image file, the bytes of one, or a URL (`data:`, `http:`, `https:`)."""


@dataclass(frozen=True)
class Sample:
    """One prompt with one response.

    Attributes:
        sample_id: the key that the result carries.
        messages: the prompt's turns, `{"role": ..., "content": ...}`; some also have `tool_calls` (in OpenAI's shape,
            arguments as JSON text), `tool_call_id` or `name`.
        response: the response verbatim.
        segments: spans to measure, disjoint.
        images: the prompt's images in the order in which it shows them. A turn shows an image at each `<image>` in its
            content; if no turn has one, all are shown at the start of the first user turn.
        reference: the correct answer, if the row has one.
    """

    sample_id: str
    messages: Sequence[dict[str, Any]]
    response: str
    segments: Sequence[Segment] = ()
    images: Sequence[ImageSource] = ()
    reference: str | None = None


def without_nulls(turns: Any) -> Any:
    """Return turns read from a table, which gives every turn the keys of all, without the keys that are null."""
    if isinstance(turns, Mapping):
        return {name: without_nulls(one) for name, one in turns.items() if one is not None}
    return [without_nulls(one) for one in turns] if isinstance(turns, list) else turns


def calls_of(turn: Mapping[str, Any]) -> list[str]:
    """Return a turn's tool calls, each as a JSON object with name and arguments, in this order."""
    texts: list[str] = []
    for call in turn.get("tool_calls") or ():
        function = call["function"]
        arguments = _arguments(function)
        written = function["arguments"].strip() if isinstance(arguments, dict) else json.dumps(arguments)
        texts.append(f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": {written}}}')
    return texts


def turn_text(turn: Mapping[str, Any]) -> str:
    """Return a turn as text, without a chat template: its content, and each of its tool calls on a line."""
    content, calls = str(turn["content"]), calls_of(turn)
    return "\n".join([*([content] if content.strip() or not calls else []), *calls])


def template_turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Return a turn as chat templates expect it: the arguments of tool calls as objects, not as JSON text."""
    if not turn.get("tool_calls"):
        return dict(turn)
    calls = [
        call | {"function": call["function"] | {"arguments": _arguments(call["function"])}}
        for call in turn["tool_calls"]
    ]
    return {**turn, "tool_calls": calls}


def _arguments(function: Mapping[str, Any]) -> object:
    """Return the arguments of a call as an object; as the text that they are if they are not JSON of an object."""
    try:
        found = json.loads(function["arguments"])
    except ValueError:
        return function["arguments"]
    return found if isinstance(found, dict) else function["arguments"]


@dataclass(frozen=True)
class Encoded:
    """A sample as tokens.

    Attributes:
        sample: the sample that was encoded.
        input_ids: prompt, response and end-of-sequence token, truncated at the maximum length.
        prompt_tokens: number of prompt tokens (image tokens included).
        response_tokens: number of response tokens, without EOS.
        segment_of_token: for every token the index of its segment, or -1.
        flags: why the sample cannot be run (`UNRUNNABLE`), or how it was truncated: `truncated`, `answer_truncated`,
            `response_truncated`.
        model_inputs: further model inputs of this sample (pixel values and the like), as CPU tensors.
        tag_tokens: positions of the response's tokens that are think tags or the white space around them, ascending.
    """

    sample: Sample
    input_ids: list[int]
    prompt_tokens: int
    response_tokens: int
    segment_of_token: list[int]
    flags: tuple[str, ...] = ()
    model_inputs: Mapping[str, Any] = field(default_factory=dict)
    tag_tokens: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.input_ids)


NON_FINITE = "non_finite"
"""The flag of a sample with a requested value that is NaN or Inf."""

UNRUNNABLE = {
    "template_refused": "the chat template rejects the prompt's turns",
    "prompt_too_long": "the prompt alone fills the maximum length",
    "empty_response": "the response has no token that the model predicts",
    "token_outside_vocabulary": "the tokenizer produces a token that the model has no row for",
    "images_not_supported": "the sample has images, and the model reads text only or its folder has no processor",
    "image_missing": "an image file does not exist or cannot be read",
    "image_changed": "an image file has changed since its row was read",
    "image_outside_folder": "an image path points outside the row's folder",
    "image_remote": "an image has a web address, and fetching is not allowed",
    "image_unreachable": "an image could not be fetched from its web address",
    "image_unreadable": "an image cannot be decoded, or the model's processor rejects it",
    "image_too_large": "an image has more pixels or bytes than allowed",
    "image_count_mismatch": "the prompt marks another number of images than it has, or contains an image token",
}
"""Flags of samples that cannot be measured at all, with their meaning."""


class WindowError(ScoringError):
    """Prefix windows cannot be measured."""


@dataclass(frozen=True)
class PrefixWindows:
    """Early losses: l_N = mean NLL of the first min(N, len) tokens of the response (TEMP, arXiv 2606.26797).

    If nothing else is requested, samples are run only up to the longest window: `curation_resources.scoring.prefixes`.

    Attributes:
        lengths: N of each window, in tokens.
        reasoning_only: end the windows where the answer begins, which also excludes EOS; skip samples without reasoning
            (`empty_reasoning`). A response without an answer segment is reasoning throughout. The source's code lets
            windows extend into the answer: False.
        skip_template_tokens: do not count tokens that a chat template may write inside the assistant's turn: think tags
            with the white space around them, and EOS. The turn's header belongs to the prompt either way, since the
            response is encoded verbatim after the rendered prompt.

    Raises:
        WindowError: there is no window, or one without tokens.
    """

    lengths: tuple[int, ...]
    reasoning_only: bool = True
    skip_template_tokens: bool = False

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise WindowError(f"prefix windows {self.lengths}: set one or more lengths of at least one token")

    @property
    def longest(self) -> int:
        """N of the longest window."""
        return max(self.lengths)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The signals to measure in one pass. A signal that is not requested costs nothing.

    Attributes:
        step_gradients: GRACE's Gram matrix under this proxy, or None.
        step_features: maps gradients of segments to vectors, under `projected`.
        likelihoods: NLL windows, entropy, least confidence and margin of the response.
        segment_likelihoods: mean NLL of every step and of the answer.
        sequence_likelihoods: NLL, entropy and largest logits over the whole sequence, prompt included.
        embeddings: poolings of the last layer's hidden states.
        token_likelihoods: -log p of every token of the response.
        unconditional: mean NLL of the response alone, without its prompt: a second, shorter pass
            (`curation_resources.scoring.measuring.without_prompt`).
        prefix_losses: mean NLL of the response's first tokens. Requested alone, only these tokens are run; otherwise
            they
            come from the pass of the other signals.
        spectra: statistics of the singular values of every attention projection's gradient: a forward and backward pass
            (`curation_resources.scoring.spectra`).
        flattened_cosines: for spectra, see `SpectraOfBatch`.
        gradient_norms: norm of the gradient with respect to these weights: shares the backward pass of `spectra` and
            features (`curation_resources.scoring.gradient_pass`).
        features: the gradient as one short vector: likewise.
        adam_features: Adam's direction as such a vector; needs a checkpoint with AdamW's moments.
        trajectory: mean NLL of the response at every checkpoint of `PassSpec.trajectory`: one pass each
            (`curation_resources.training.trajectory`; a single pass ignores it).
        trajectory_gradients: GRACE's Gram matrix under this proxy at every such checkpoint, or None: likewise.
        trajectory_features: the gradient as one short vector at every such checkpoint: likewise.
        trajectory_adam_features: Adam's direction as such a vector: likewise.
        base_likelihoods: mean NLL of the response at the model that the training run started from: likewise.
        perturbed: early losses at perturbed checkpoints: likewise (`curation_resources.scoring.perturbed`).
        in_run: influence recorded by the training run (`models.scorer`; a single pass ignores it).
        rewards: the reward (`models.reward`); only for reward models.
        process_rewards: rewards of steps (`models.process_reward`); only for process reward models.
        questions: questions to a judge (`curation_resources.models.judge`).
        solving: answers to the prompt, compared with the sample's reference (`curation_resources.models.solving`).
        direct: prefixes after which the likelihood of the response as a text of its own is measured, tokenized anew
            (IFD as released): a pass over the response for each (`curation_resources.scoring.measuring`).
        sequence_uncertainty: entropy and largest logits over all positions of the sequence, the one after the last
            token included (uncertainty as released).
        error_norms: norm of p - y at every token of the response, averaged (EL2N).
        attention_influence: losses of the response and its segments, with and without the model's retrieval heads: a
            second pass (`curation_resources.scoring.retrieval_heads`).
        with_eos: count EOS in `token_likelihoods` and in the loss that `features` and `adam_features` are gradients of,
            as LESS, TAGCOS and S2L do; always so along a trajectory.
    """

    step_gradients: Proxy | None = None
    step_features: FeatureSpec | None = None
    likelihoods: bool = False
    segment_likelihoods: bool = False
    sequence_likelihoods: bool = False
    embeddings: frozenset[Pooling] = frozenset()
    token_likelihoods: bool = False
    unconditional: bool = False
    prefix_losses: PrefixWindows | None = None
    spectra: bool = False
    flattened_cosines: bool = False
    gradient_norms: GradientWeights | None = None
    features: FeatureSpec | None = None
    adam_features: FeatureSpec | None = None
    trajectory: bool = False
    trajectory_gradients: Proxy | None = None
    trajectory_features: FeatureSpec | None = None
    trajectory_adam_features: FeatureSpec | None = None
    base_likelihoods: bool = False
    perturbed: bool = False
    in_run: bool = False
    rewards: bool = False
    process_rewards: bool = False
    questions: tuple[Question, ...] = ()
    solving: bool = False
    direct: frozenset[AnswerPrefix] = frozenset()
    sequence_uncertainty: bool = False
    error_norms: bool = False
    attention_influence: RetrievalSpec | None = None
    with_eos: bool = False

    @property
    def along(self) -> bool:
        """True if anything is measured at the checkpoints of a trajectory."""
        return self.on_the_way != Request()

    @property
    def on_the_way(self) -> Request:
        """The request for each checkpoint of a trajectory."""
        return Request(
            token_likelihoods=self.trajectory,
            step_gradients=self.trajectory_gradients,
            step_features=self.step_features if self.trajectory_gradients == "projected" else None,
            features=self.trajectory_features,
            adam_features=self.trajectory_adam_features,
            with_eos=self.trajectory or bool(self.trajectory_features or self.trajectory_adam_features),
        )

    @property
    def here(self) -> Request:
        """The part of the request for the target's own checkpoint."""
        return replace(
            self,
            trajectory=False,
            trajectory_gradients=None,
            trajectory_features=None,
            trajectory_adam_features=None,
            base_likelihoods=False,
            perturbed=False,
            step_features=self.step_features if self.step_gradients == "projected" else None,
        )

    @property
    def forward(self) -> Request:
        """The part of the request that needs no backward pass."""
        proxy = None if self.step_gradients == "projected" else self.step_gradients
        return replace(
            self,
            step_gradients=proxy,
            step_features=None,
            spectra=False,
            gradient_norms=None,
            features=None,
            adam_features=None,
            with_eos=self.with_eos and self.token_likelihoods,
        )


@dataclass
class SampleSignals:
    """All measurements of one sample in one pass.

    A signal that was not requested, or cannot be measured for this sample, is None; a flag gives the reason.

    Attributes:
        sample_id: the sample.
        position: its position in the input.
        tokens: tokens run through the model; 0 if the sample was not run.
        prompt_tokens: tokens of the prompt, image tokens included.
        response_tokens: tokens of the response, without EOS.
        step_indices: indices of the steps that have tokens, ascending; K of them.
        segment_tokens: tokens of each of these steps, then of the answer if it has any.
        flags: flags that concern all signals: `UNRUNNABLE`, truncation flags, `non_finite`.
        gradient_flags: flags that concern only step gradients: `no_answer`, `answer_without_tokens`, `no_steps` (not
            measured), `few_steps`, `zero_norm`.
        prefix_flags: flags that concern only prefix windows, if requested: `empty_reasoning` (not measured).
        step_gradients: see `StepGradients`.
        likelihoods: see `Likelihoods`.
        segment_nll: mean NLL of each segment of `segment_tokens`, in nats; also None if there is no segment.
        sequence_likelihoods: see `SequenceLikelihoods`.
        embeddings: vectors [d] in fp32 by pooling.
        token_nll: -log p of every token of the response [response_tokens] in fp32, then of EOS if requested
            (`with_eos`). The first one is missing if nothing precedes it.
        unconditional_nll: mean -log p of the response's second to last token, given only the response's own tokens.
        unconditional_tokens: tokens run for it.
        direct: see `DirectAnswer`, by prefix.
        sequence_uncertainty: see `SequenceUncertainty`.
        error_norm: mean over the response's tokens of the norm of p - y.
        response_losses: see `ResponseLosses`; for attention influence.
        masked_losses: the same with the retrieval heads masked.
        masked_heads: these heads, as layer and head from 0, strongest first.
        masked_tokens: tokens run with masked heads, not included in `tokens`.
        spectra: see `GradientSpectra`.
        gradient_norm: norm of the gradient.
        features: see `GradientFeatures`.
        adam_features: the same for Adam's direction.
        response_loss: mean -log p of the response, the loss that all these gradients are of, in nats.
        backward_tokens: tokens run for them, forward and backward.
        prefix_nll: mean -log p, in nats, by window length.
        trajectory: mean -log p of the response and EOS at each checkpoint of a trajectory, in nats.
        trajectory_gradients: see `StepGradients`, at each checkpoint of a trajectory.
        trajectory_gradient_flags: `gradient_flags` of these.
        trajectory_features: see `GradientFeatures`, at each checkpoint of a trajectory.
        trajectory_adam_features: the same for Adam's direction.
        trajectory_weights: weights of these checkpoints (`PassSpec.trajectory_weights`).
        base_nll: mean -log p of the response at the model before its training run, in nats.
        perturbed: early losses at perturbed checkpoints.
        elsewhere_tokens: tokens run at other checkpoints for these, not included in `tokens`.
        influence: on each validation set of the training run; None if the run did not train on the sample.
        reward: a reward model's logit.
        step_rewards: probability that each step, and the answer if there is one, is right.
        judgements: see `Judgement`, by question.
        question_flags: why a question has no judgement.
        solved: see `Solved`.
    """

    sample_id: str
    position: int
    tokens: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0
    step_indices: list[int] = field(default_factory=list)
    segment_tokens: list[int] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    gradient_flags: list[str] = field(default_factory=list)
    prefix_flags: list[str] = field(default_factory=list)
    step_gradients: StepGradients | None = None
    likelihoods: Likelihoods | None = None
    segment_nll: list[float] | None = None
    sequence_likelihoods: SequenceLikelihoods | None = None
    embeddings: dict[Pooling, npt.NDArray[np.float32]] = field(default_factory=dict)
    token_nll: npt.NDArray[np.float32] | None = None
    unconditional_nll: float | None = None
    unconditional_tokens: int = 0
    direct: dict[AnswerPrefix, DirectAnswer] = field(default_factory=dict)
    sequence_uncertainty: SequenceUncertainty | None = None
    error_norm: float | None = None
    response_losses: ResponseLosses | None = None
    masked_losses: ResponseLosses | None = None
    masked_heads: Sequence[tuple[int, int]] = ()
    masked_tokens: int = 0
    spectra: GradientSpectra | None = None
    gradient_norm: float | None = None
    features: GradientFeatures | None = None
    adam_features: GradientFeatures | None = None
    response_loss: float | None = None
    backward_tokens: int = 0
    prefix_nll: dict[int, float] | None = None
    trajectory: list[float] | None = None
    trajectory_gradients: list[StepGradients] | None = None
    trajectory_gradient_flags: list[str] = field(default_factory=list)
    trajectory_features: list[GradientFeatures] | None = None
    trajectory_adam_features: list[GradientFeatures] | None = None
    trajectory_weights: list[float] = field(default_factory=list)
    base_nll: float | None = None
    perturbed: PerturbedSignals | None = None
    elsewhere_tokens: int = 0
    influence: list[float] | None = None
    reward: float | None = None
    step_rewards: list[float] | None = None
    judgements: dict[Question, Judgement] = field(default_factory=dict)
    question_flags: dict[Question, str] = field(default_factory=dict)
    solved: Solved | None = None

    @property
    def labels(self) -> int:
        """Tokens of the response that have a prediction: all but the very first of a sequence."""
        return self.response_tokens - (not self.prompt_tokens)


@dataclass(frozen=True, kw_only=True)
class PerturbedRequest:
    """The early losses to measure in one pass over perturbed checkpoints (TEMP, arXiv 2606.26797).

    Attributes:
        base: measure `filter_windows` at the base model.
        sigma: measure `filter_windows` at theta_0 + sigma z; None: do not. `curation_resources.scoring.sigma` finds
            one.
        draws: number of the source's random draws in z.
        directional: measure `path_windows` at every directional checkpoint.
        filter_windows: lengths in tokens (the source's difficulty filter: l_100).
        path_windows: lengths in tokens (the source's budgets and clusters: l_100 and l_1000).
        reasoning_only: see `PrefixWindows`.
        skip_template_tokens: see `PrefixWindows`.
    """

    base: bool = True
    sigma: float | None = None
    draws: int = 1
    directional: bool = True
    filter_windows: tuple[int, ...] = (100,)
    path_windows: tuple[int, ...] = (100, 1000)
    reasoning_only: bool = True
    skip_template_tokens: bool = False

    def windows(self, lengths: tuple[int, ...]) -> PrefixWindows:
        """Return windows of these lengths."""
        return PrefixWindows(lengths, self.reasoning_only, self.skip_template_tokens)


@dataclass(frozen=True)
class Realised:
    """The distance that the weights of a perturbed checkpoint moved.

    Attributes:
        aim: the target radius: r_j, or sigma * sqrt(n) of n perturbed elements.
        radius: ||displacement|| in fp32, before the cast; within 1 % of the aim from 1e5 elements on, unless a few
            of them hold most of the direction.
        cast_radius: ||theta - theta_0||, after the cast to the weights' precision; in float32 estimated from a part of
            the
            large tensors, as is the cosine.
        cosine: between the displacement and theta - theta_0 after the cast; well below 1 if the precision is too coarse
            for so small a radius, in which case measure in float32. 0 if nothing moved.
    """

    aim: float
    radius: float
    cast_radius: float
    cosine: float


@dataclass
class PerturbedSignals:
    """Early losses of one sample at the base model and at perturbed checkpoints.

    A value that was not requested, or cannot be measured for this sample, is None; a flag gives the reason.

    Attributes:
        sample_id: the sample.
        position: its position in the input.
        tokens: tokens run through the model at all checkpoints together.
        prompt_tokens: tokens of the prompt, image tokens included.
        response_tokens: tokens of the response, without EOS.
        flags: `UNRUNNABLE`, truncation flags, `non_finite`.
        prefix_flags: `empty_reasoning` (not measured).
        base: mean -log p at the base model, in nats, by window length.
        random: the same at theta_0 + sigma z.
        directional: the same at every directional checkpoint; also None if one of them is not finite.
        realised: distances of the checkpoints, the random one (if requested) before the directional ones; one object
            for all samples of a window.
    """

    sample_id: str
    position: int
    tokens: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0
    flags: list[str] = field(default_factory=list)
    prefix_flags: list[str] = field(default_factory=list)
    base: dict[int, float] | None = None
    random: dict[int, float] | None = None
    directional: list[dict[int, float]] | None = None
    realised: Sequence[Realised] = ()
