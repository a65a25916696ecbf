"""From text to tokens: rendered prompt + the response verbatim + EOS, and which token is in which segment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any, Literal

import numpy as np
from jinja2 import TemplateError

from resources.scoring.errors import ScoringError
from resources.scoring.samples import ANSWER, Encoded, Sample, Segment

Template = Literal["auto", "chat", "plain"]

FIXED_DATE = date(2024, 7, 26)
"""The date that chat templates write, if they write one."""


class EncodingError(ScoringError):
    """The tokenizer cannot do what encoding needs."""


class Encoder:
    """Encodes samples with one tokenizer, template and maximum length.

    The whole text is tokenized once, so that the tokens at the seam of prompt and response are those that
    the model would see; a token is the response's if its first non-space character is.

    Args:
        tokenizer: a fast transformers tokenizer (character offsets are needed).
        template: `auto` takes the tokenizer's chat template if it has one, else `plain`, which joins the
            turns' contents and the response with newlines.
        max_length: longest sequence in tokens; longer ones are cut on the right.

    Raises:
        EncodingError: the tokenizer gives no offsets, or has no chat template although one is asked for.
    """

    def __init__(self, tokenizer: Any, template: Template, max_length: int) -> None:
        if not tokenizer.is_fast:
            raise EncodingError("the tokenizer is not a fast one, so it gives no character offsets")
        has_template = tokenizer.chat_template is not None
        if template == "chat" and not has_template:
            raise EncodingError("template: chat, but the tokenizer has no chat template; use template: plain")
        self.tokenizer = tokenizer
        self.chat = template == "chat" or (template == "auto" and has_template)
        self.max_length = max_length

    def render_prompt(self, sample: Sample) -> str:
        """The prompt as text, up to where the response begins.

        Raises:
            jinja2.TemplateError: the chat template refuses these turns, e.g. a system turn.
        """
        if self.chat:
            turns = [dict(turn) for turn in sample.messages]
            # Some templates write today's date: a measurement must not depend on the day it was made.
            rendered = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, strftime_now=FIXED_DATE.strftime
            )
            return str(rendered)
        return "".join(turn["content"] + "\n" for turn in sample.messages)

    def encode(self, samples: Sequence[Sample]) -> list[Encoded]:
        """Encode samples, in order.

        A sample whose turns the chat template refuses has no tokens and the flag `template_refused`.
        """
        prompts: list[str | None] = [self._rendered(sample) for sample in samples]
        texts = [
            "" if prompt is None else prompt + sample.response for prompt, sample in zip(prompts, samples, strict=True)
        ]
        if not texts:
            return []
        # A chat template writes its own special tokens; otherwise the tokenizer adds BOS if it has one.
        batch = self.tokenizer(
            texts,
            add_special_tokens=not self.chat,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [
            Encoded(sample, [], 0, 0, [], ("template_refused",))
            if prompt is None
            else self._assemble(sample, text, len(prompt), ids, offsets)
            for sample, text, prompt, ids, offsets in zip(
                samples, texts, prompts, batch["input_ids"], batch["offset_mapping"], strict=True
            )
        ]

    def _rendered(self, sample: Sample) -> str | None:
        try:
            return self.render_prompt(sample)
        except (TemplateError, TypeError):
            # Templates refuse with raise_exception, and trip over what they did not expect.
            return None

    def _assemble(
        self, sample: Sample, text: str, prompt_length: int, ids: list[int], offsets: list[tuple[int, int]]
    ) -> Encoded:
        eos = self.tokenizer.eos_token_id
        while ids and ids[-1] == eos and offsets[-1][0] == offsets[-1][1]:
            # Some tokenizers append EOS themselves; it is added once, below.
            ids, offsets = ids[:-1], offsets[:-1]
        anchors = np.array([anchor(text, start, end) for start, end in offsets], dtype=np.int64)
        special = np.array([start == end for start, end in offsets], dtype=bool)
        in_response = np.flatnonzero((anchors >= prompt_length) & ~special)
        first = int(in_response[0]) if len(in_response) else len(ids)
        segments = segment_of_anchors(anchors - prompt_length, sample.segments)
        segments[:first] = -1
        segments[special] = -1
        full = [*ids, eos] if eos is not None else list(ids)
        kept = full[: self.max_length]
        segment_of_token = [*segments.tolist(), -1][: len(kept)]
        flags = _truncation_flags(segments, len(ids), len(kept), first)
        return Encoded(
            sample=sample,
            input_ids=kept,
            prompt_tokens=min(first, len(kept)),
            response_tokens=max(0, min(len(ids), len(kept)) - first),
            segment_of_token=segment_of_token,
            flags=flags,
        )


def anchor(text: str, start: int, end: int) -> int:
    """The character that decides whose a token is: its first non-space one, else its first."""
    for position in range(start, end):
        if not text[position].isspace():
            return position
    return start


def segment_of_anchors(anchors: np.ndarray, segments: Iterable[Segment]) -> np.ndarray:
    """For every anchor [T] (character of the response) the index of the segment that holds it, or -1."""
    result = np.full(len(anchors), -1, dtype=np.int64)
    ordered = sorted(segments, key=lambda segment: segment.start)
    if not ordered or not len(anchors):
        return result
    starts = np.array([segment.start for segment in ordered])
    ends = np.array([segment.end for segment in ordered])
    indices = np.array([segment.index for segment in ordered])
    slot = np.searchsorted(starts, anchors, side="right") - 1
    inside = (slot >= 0) & (anchors < ends[np.maximum(slot, 0)])
    result[inside] = indices[slot[inside]]
    return result


def _truncation_flags(segments: np.ndarray, tokens: int, kept: int, first: int) -> tuple[str, ...]:
    """What cutting at `kept` tokens did to the response and to its answer."""
    if tokens <= kept:
        return ()
    if first >= kept:
        return ("prompt_too_long",)
    answer = np.flatnonzero(segments == ANSWER)
    if not len(answer) or answer[-1] < kept:
        return ("response_truncated",)
    return ("truncated",) if answer[0] >= kept else ("answer_truncated",)
