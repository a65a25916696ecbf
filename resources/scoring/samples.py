"""What the scoring passes take and give: plain data, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

ANSWER = 0
"""The segment index that stands for the answer; steps count from 1."""


@dataclass(frozen=True)
class Segment:
    """A span of the response, in characters: a step (index 1..K) or the answer (index 0)."""

    index: int
    start: int
    end: int


@dataclass(frozen=True)
class Sample:
    """One prompt with one response.

    Attributes:
        sample_id: the key that the result carries.
        messages: the prompt's turns, `{"role": ..., "content": ...}`.
        response: the response verbatim.
        segments: spans to measure, disjoint.
        images: references to the prompt's images; a text pass does not run a sample that has any.
    """

    sample_id: str
    messages: Sequence[dict[str, str]]
    response: str
    segments: Sequence[Segment] = ()
    images: Sequence[str] = ()


@dataclass(frozen=True)
class Encoded:
    """A sample as tokens.

    Attributes:
        sample: what was encoded.
        input_ids: prompt, response and end-of-sequence token, cut at the maximum length.
        prompt_tokens: how many of them are the prompt's.
        response_tokens: how many are the response's, EOS not counted.
        segment_of_token: for every token the index of its segment, or -1.
        flags: `truncated`, `answer_truncated`, `response_truncated`, `prompt_too_long`, `template_refused`.
    """

    sample: Sample
    input_ids: list[int]
    prompt_tokens: int
    response_tokens: int
    segment_of_token: list[int]
    flags: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass
class StepGradients:
    """GRACE's signal for one sample: see `resources.scoring.forward`.

    Attributes:
        sample_id: the sample.
        step_indices: indices of the steps that have tokens, ascending; K of them.
        gram: upper triangle by rows of M [K+1, K+1], the answer last; None if not measured.
        norms: square roots of M's diagonal; None if not measured.
        segment_tokens: tokens of each step, then of the answer.
        response_tokens: tokens of the response, without EOS.
        tokens: tokens run through the model; 0 if the sample was not run.
        flags: why there is no matrix, or what to know about it.
    """

    sample_id: str
    step_indices: list[int] = field(default_factory=list)
    gram: list[float] | None = None
    norms: list[float] | None = None
    segment_tokens: list[int] = field(default_factory=list)
    response_tokens: int = 0
    tokens: int = 0
    flags: list[str] = field(default_factory=list)
