"""Encode text as tokens: rendered prompt + the response verbatim + EOS, with the segment of each token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np
from jinja2 import TemplateError, TemplateSyntaxError
from torch import Tensor

from curation_resources.scoring import vision
from curation_resources.scoring.errors import ScoringError
from curation_resources.scoring.images import ImageError, ImageLimits, open_image
from curation_resources.scoring.samples import ANSWER, UNRUNNABLE, Encoded, Sample, Segment, template_turn, turn_text
from curation_resources.scoring.spec import Template
from curation_resources.scoring.tags import OPENED_THOUGHT, TAGS

FIXED_DATE = date(2024, 7, 26)
"""The date for chat templates that write the current date."""

SPACES = np.array([code for code in range(0x10000) if chr(code).isspace()], dtype=np.uint32)
"""All code points that Python considers white space; there are none outside the basic plane."""

LONGEST_OPENING = 40
"""Characters at the end of a prompt in which an opened thought is looked for."""

LONGEST_REASON = 200
"""Characters of a chat template's refusal that are kept."""


ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:"
)
"""Stanford Alpaca's prompt for an instruction without input; the response follows directly."""

PROBE = "probe"
"""A turn for testing whether a chat template reads contents as text or as parts."""


class EncodingError(ScoringError):
    """The tokenizer lacks a feature that encoding needs."""


def _default_template(chat_template: str | Mapping[str, str]) -> str:
    """Return the chat template to use: the only one, or the one named `default`.

    Raises:
        EncodingError: no template is named `default`.
    """
    if not isinstance(chat_template, str):
        if "default" not in chat_template:
            raise EncodingError(
                f"the tokenizer has chat templates named {', '.join(sorted(chat_template))}, but none named default. "
                "Name one of them default in the model's folder, or use template: plain."
            )
        chat_template = chat_template["default"]
    return chat_template


class Encoder:
    """Encodes samples with one tokenizer, template and maximum length.

    The whole text is tokenized at once, so the tokens at the boundary of prompt and response are those that the model
    would
    see. A token belongs to the response if its first non-space character does. Image tokens belong to the prompt.
    Several
    threads may share an encoder.

    Args:
        tokenizer: a fast transformers tokenizer (character offsets are needed).
        template: `auto` uses the chat template of the processor or tokenizer if there is one, else `plain`, which joins
            the turns' contents and the response with newlines. `question_answer` is the GRAPE paper's (arXiv
            2502.04194):
            `Question: {prompt} \n Answer: {response}`, turns joined by newlines. `alpaca` is Stanford Alpaca's for an
            instruction without input, which Cherry LLM uses (arXiv 2308.12032), turns joined by blank lines.
        max_length: longest sequence in tokens; longer ones are truncated on the right.
        processor: the model's processor; without one, samples with images cannot be run.
        vocabulary: rows of the model's input embedding; token ids beyond them are flagged.
        limits: restrictions on the images to open.

    Raises:
        EncodingError: the tokenizer provides no offsets, or its chat template is missing or invalid.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: Template,
        max_length: int,
        processor: Any = None,
        vocabulary: int | None = None,
        limits: ImageLimits | None = None,
    ) -> None:
        if not tokenizer.is_fast:
            raise EncodingError("the tokenizer is not a fast tokenizer, so it provides no character offsets")
        chat_template = getattr(processor, "chat_template", None) or tokenizer.chat_template
        if template == "chat" and chat_template is None:
            raise EncodingError("template: chat, but the tokenizer has no chat template. Use template: plain.")
        self.tokenizer = tokenizer
        self.processor = processor
        self.chat = template == "chat" or (template == "auto" and chat_template is not None)
        self.question_answer = template == "question_answer"
        self.alpaca = template == "alpaca"
        self.max_length = max_length
        self.vocabulary = vocabulary
        self.limits = limits or ImageLimits()
        self._template = _default_template(chat_template) if self.chat else None
        self._parts = self.chat and self._reads_parts()
        self._media = vision.media_tokens(processor) if processor is not None else frozenset[str]()
        # The first call sets the tokenizer's padding and truncation; after that, threads only read.
        tokenizer(PROBE)

    def render_prompt(self, sample: Sample) -> str:
        """Return the prompt as text, up to where the response starts; images become the processor's placeholder.

        Raises:
            jinja2.TemplateError: the chat template rejects these turns, e.g. a system turn.
            ImageError: `image_count_mismatch`.
        """
        turns = vision.turns_in_parts(sample)
        if self._parts:
            return self._render(turns)
        mark = vision.image_mark(self.processor) if sample.images else ""
        lines = [{**turn, "content": vision.in_line(turn["content"], mark)} for turn in turns]
        if self.chat:
            return self._render(lines)
        lines = [{"role": turn["role"], "content": turn_text(turn)} for turn in lines]
        if self.question_answer:
            return "Question: " + "\n".join(turn["content"] for turn in lines) + " \n Answer: "
        if self.alpaca:
            return ALPACA.format("\n\n".join(turn["content"] for turn in lines))
        return "".join(turn["content"] + "\n" for turn in lines)

    def encode(self, samples: Sequence[Sample]) -> list[Encoded]:
        """Encode samples, in order.

        A sample that cannot be encoded (its turns are rejected, an image is not available) has no tokens and a flag
        with the
        reason.
        """
        results: list[Encoded | None] = [None] * len(samples)
        texts: list[tuple[int, str]] = []
        for position, sample in enumerate(samples):
            try:
                prompt = self._checked_prompt(sample)
                if sample.images:
                    results[position] = self._with_images(sample, prompt)
                else:
                    texts.append((position, prompt))
            except ImageError as error:
                results[position] = Encoded(sample, [], 0, 0, [], (error.flag,))
            except TemplateError as error:
                said = " ".join(str(error).split())[:LONGEST_REASON]
                flags = ("template_refused", *([f"template_refused: {said}"] if said else []))
                results[position] = Encoded(sample, [], 0, 0, [], flags)
        for position, encoded in self._texts(samples, texts):
            results[position] = encoded
        return [encoded for encoded in results if encoded is not None]

    def direct_answer(self, encoded: Encoded, prefix: str) -> tuple[Encoded, bool]:
        """Return the response of an encoded sample as a text of its own, and whether a special token (BOS) precedes it.

        It is tokenized anew, without EOS. Special tokens that the tokenizer adds to any text and a prefix take the
        place of the prompt. Without either, nothing predicts the first token. Truncation leaves as many tokens as
        beside the prompt.
        """
        text = prefix + encoded.sample.response
        ids = self._own_tokens(text)
        special = len(ids) - len(self._own_tokens(text, special=False))
        first = len(self._own_tokens(prefix)) if prefix else special
        kept = ids[: max(0, self.max_length - encoded.prompt_tokens) + max(1, first)]
        answer = Encoded(encoded.sample, kept, first, max(0, len(kept) - first), [-1] * len(kept))
        return answer, special > 0

    def _own_tokens(self, text: str, special: bool = True) -> list[int]:
        """Return a text's tokens, with the tokenizer's special tokens except a final EOS."""
        found = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        ids, offsets = list(found["input_ids"]), found["offset_mapping"]
        if ids and special and ids[-1] == self.tokenizer.eos_token_id and offsets[-1][0] == offsets[-1][1]:
            ids.pop()
        return ids

    def _checked_prompt(self, sample: Sample) -> str:
        """Return the rendered prompt if the model can process the sample.

        Raises:
            TemplateError: the template rejects the turns, or does not show their images.
            ImageError: `images_not_supported` or `image_count_mismatch`.
        """
        if self.processor is None:
            if sample.images:
                raise ImageError("images_not_supported")
            return _without_opened_thought(self.render_prompt(sample), sample.response)
        texts = [part.get("text", "") for turn in vision.turns_in_parts(sample) for part in turn["content"]]
        if any(token in text for token in self._media for text in (*texts, sample.response)):
            # It would be tokenized as an image that does not exist.
            raise ImageError("image_count_mismatch", "the text contains an image token")
        prompt = self.render_prompt(sample)
        if sample.images and prompt.count(vision.placeholder_token(self.processor)) != len(sample.images):
            raise TemplateError("the chat template does not show the images")
        return _without_opened_thought(prompt, sample.response)

    def _render(self, turns: Sequence[Mapping[str, Any]]) -> str:
        # Some templates write today's date, but a measurement must not depend on its day.
        try:
            rendered = self.tokenizer.apply_chat_template(
                [template_turn(turn) for turn in turns],
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=True,
                strftime_now=FIXED_DATE.strftime,
            )
        except TypeError as error:
            # Templates reject turns with raise_exception, but unexpected input makes them fail with a TypeError.
            raise TemplateError(str(error)) from error
        return str(rendered)

    def _reads_parts(self) -> bool:
        """Return True if the chat template expects contents in parts, as templates of vision-language models do.

        Templates that only read text would write the Python repr of the parts; some that only read parts would drop
        plain text.
        A text model's template that can read text gets text.
        """
        as_text, refusal = self._probed(PROBE)
        as_parts, refusal_of_parts = self._probed([{"type": "text", "text": PROBE}])
        if refusal and refusal_of_parts:
            raise EncodingError(
                f"the tokenizer's chat template refuses even a single turn of the user: {refusal}. Correct it, or use "
                "template: plain."
            )
        reads_parts = PROBE in as_parts and "'type'" not in as_parts
        return reads_parts and (self.processor is not None or PROBE not in as_text)

    def _probed(self, content: Any) -> tuple[str, str]:
        """Return a user turn as rendered, and what the template says if it refuses the turn."""
        try:
            return self._render([{"role": "user", "content": content}]), ""
        except TemplateSyntaxError as error:
            raise EncodingError(
                f"the tokenizer's chat template is not valid Jinja (line {error.lineno}: {error.message}). Correct it, "
                "or use template: plain."
            ) from error
        except TemplateError as error:
            return "", str(error) or type(error).__name__

    def _adds_special(self, prompt: str) -> bool:
        """Return True if the tokenizer adds its special tokens (BOS) to a prompt.

        A text model's chat template writes them itself. Those of vision-language models often leave it to the
        tokenizer, as
        `ProcessorMixin.apply_chat_template` does, unless the prompt already starts with BOS.
        """
        if not self.chat:
            return True
        bos = self.tokenizer.bos_token
        return self.processor is not None and not (bos is not None and prompt.startswith(bos))

    def _texts(self, samples: Sequence[Sample], prompts: list[tuple[int, str]]) -> Iterable[tuple[int, Encoded]]:
        """Yield the positions and encodings of text-only samples, tokenized in batches."""
        for special in (False, True):
            chosen = [(position, prompt) for position, prompt in prompts if self._adds_special(prompt) == special]
            if not chosen:
                continue
            texts = [prompt + samples[position].response for position, prompt in chosen]
            batch = self.tokenizer(
                texts,
                add_special_tokens=special,
                return_offsets_mapping=True,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
            for (position, prompt), text, ids, offsets in zip(
                chosen, texts, batch["input_ids"], batch["offset_mapping"], strict=True
            ):
                yield position, self._assemble(samples[position], text, len(prompt), ids, offsets, {})

    def _with_images(self, sample: Sample, prompt: str) -> Encoded:
        images = [open_image(source, self.limits) for source in sample.images]
        made = vision.process(self.processor, prompt, sample.response, images, self._adds_special(prompt))
        return self._assemble(sample, made.text, made.prompt_length, made.ids, made.offsets, made.model_inputs)

    def _assemble(
        self,
        sample: Sample,
        text: str,
        prompt_length: int,
        ids: list[int],
        offsets: list[tuple[int, int]],
        model_inputs: Mapping[str, Tensor],
    ) -> Encoded:
        given = len(ids)
        eos = self.tokenizer.eos_token_id
        while ids and ids[-1] == eos and offsets[-1][0] == offsets[-1][1]:
            # Some tokenizers append EOS themselves; we add it once, below.
            ids, offsets = ids[:-1], offsets[:-1]
        starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
        anchors, special = anchors_of(text, starts, ends), starts == ends
        in_response = np.flatnonzero((anchors >= prompt_length) & ~special)
        first = int(in_response[0]) if len(in_response) else len(ids)
        segments = segment_of_anchors(anchors - prompt_length, sample.segments)
        segments[:first] = -1
        segments[special] = -1
        tags = _tag_tokens(anchors[first:] - prompt_length, sample.response) + first
        full = [*ids, eos] if eos is not None else list(ids)
        kept = full[: self.max_length]
        flags = _truncation_flags(segments, len(ids), len(kept), first)
        if min(len(ids), len(kept)) <= max(first, 1) and "prompt_too_long" not in flags:
            # The first token of a sequence does not count, because nothing predicts it.
            flags += ("empty_response",)
        if self.vocabulary is not None and max(kept, default=0) >= self.vocabulary:
            flags += ("token_outside_vocabulary",)
        runs = UNRUNNABLE.keys().isdisjoint(flags)
        return Encoded(
            sample=sample,
            input_ids=kept,
            prompt_tokens=min(first, len(kept)),
            response_tokens=max(0, min(len(ids), len(kept)) - first),
            segment_of_token=[*segments.tolist(), -1][: len(kept)],
            flags=flags,
            # Samples that are not run need not keep their pixels in memory.
            model_inputs=vision.fitted(model_inputs, given, len(kept)) if runs else {},
            tag_tokens=tuple(tags[tags < len(kept)].tolist()),
        )


def anchors_of(text: str, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the character that decides who owns each span's token [T]: its first non-space one, else its first."""
    if not text:
        return starts
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    places = np.arange(len(characters))
    # The next non-space character for every character: a running minimum from the end.
    next_ink = np.where(np.isin(characters, SPACES), len(characters), places)[::-1]
    next_ink = np.append(np.minimum.accumulate(next_ink)[::-1], len(characters))
    found = next_ink[starts]
    return np.where(found < ends, found, starts)


def segment_of_anchors(anchors: np.ndarray, segments: Iterable[Segment]) -> np.ndarray:
    """Return for every anchor [T] (a character of the response) the index of its segment, or -1."""
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


def _without_opened_thought(prompt: str, response: str) -> str:
    """Return the prompt without the thinking tag at its end, if the response begins with the same tag.

    Several chat templates open the thought themselves; a stored response has the tag too, and is measured verbatim.
    """
    opened = OPENED_THOUGHT.search(prompt[-LONGEST_OPENING:])
    if opened is None or not response.lstrip().startswith(opened[1]):
        return prompt
    return prompt[: len(prompt) - len(opened[0])]


def _tag_tokens(anchors: np.ndarray, response: str) -> np.ndarray:
    """Return the positions of the anchors that lie in a think tag or the white space around one."""
    spans = [Segment(0, *found.span()) for found in TAGS.finditer(response)] if "think>" in response else []
    return np.flatnonzero(segment_of_anchors(anchors, spans) == 0)


def _truncation_flags(segments: np.ndarray, tokens: int, kept: int, first: int) -> tuple[str, ...]:
    """Return the flags for truncating the response or its answer at `kept` tokens."""
    if tokens <= kept:
        return ()
    if first >= kept:
        return ("prompt_too_long",)
    answer = np.flatnonzero(segments == ANSWER)
    if not len(answer) or answer[-1] < kept:
        return ("response_truncated",)
    return ("truncated",) if answer[0] >= kept else ("answer_truncated",)
