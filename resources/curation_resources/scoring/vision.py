"""Prepare a sample's images for the model: place them in turns, and run the processor."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curation_resources.scoring.errors import ScoringError
from curation_resources.scoring.images import ImageError
from curation_resources.scoring.samples import Sample

if TYPE_CHECKING:
    from PIL import Image

PLACEHOLDER = "<image>"
"""Marks the position of the sample's next image in a turn's content."""

Turn = dict[str, Any]
"""`{"role": ..., "content": [{"type": "text", "text": ...} or {"type": "image"}, ...]}`."""


class ProcessorError(ScoringError):
    """A processor works in an unsupported way."""


@dataclass(frozen=True)
class Processed:
    """A processor's output for one sample.

    Attributes:
        ids: token ids of the expanded prompt and the response.
        offsets: character span of every token in `text`.
        text: the prompt with its image tokens expanded, then the response.
        prompt_length: number of characters of `text` that belong to the prompt.
        model_inputs: the other tensors that the model expects, by name.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]
    text: str
    prompt_length: int
    model_inputs: dict[str, Tensor]


def turns_in_parts(sample: Sample) -> list[Turn]:
    """Return the prompt's turns with their content in parts, images as described at `samples.Sample.images`.

    Raises:
        ImageError: `image_count_mismatch`.
    """
    contents = [turn["content"] for turn in sample.messages]
    marked = sum(content.count(PLACEHOLDER) for content in contents) if sample.images else 0
    turns: list[Turn] = []
    unplaced = len(sample.images) if marked == 0 else 0
    for turn, content in zip(sample.messages, contents, strict=True):
        parts: list[dict[str, str]] = []
        if unplaced and turn["role"] == "user":
            parts += [{"type": "image"}] * unplaced
            unplaced = 0
        for number, text in enumerate(content.split(PLACEHOLDER) if marked else [content]):
            parts += [{"type": "image"}] if number else []
            parts += [{"type": "text", "text": text}] if text else []
        turns.append({**turn, "content": parts or [{"type": "text", "text": ""}]})
    if unplaced or (marked and marked != len(sample.images)):
        raise ImageError("image_count_mismatch", f"{marked} marked, {len(sample.images)} given")
    return turns


def in_line(parts: Sequence[Mapping[str, str]], mark: str) -> str:
    """Return a turn's content as one text, with the model's own mark for an image."""
    return "".join(mark if part["type"] == "image" else part["text"] for part in parts)


def image_mark(processor: Any) -> str:
    """Return the text that the processor expands to an image's tokens, with start and end tokens if it adds none."""
    start = getattr(processor, "vision_start_token", None) or ""
    end = getattr(processor, "vision_end_token", None) or ""
    return f"{start}{placeholder_token(processor)}{end}"


def placeholder_token(processor: Any) -> str:
    """Return the token that the processor replaces, once for every image.

    Raises:
        ProcessorError: the processor has none.
    """
    token = getattr(processor, "boi_token", None) or getattr(processor, "image_token", None)
    if not isinstance(token, str) or not token:
        raise ProcessorError(f"{type(processor).__name__} has no image token")
    return token


def media_tokens(processor: Any) -> frozenset[str]:
    """Return the tokens for images, videos or sounds; the same text in a prompt would be mistaken for them."""
    names = ("image_token", "video_token", "audio_token", "boi_token")
    found = {getattr(owner, name, None) for owner in (processor, processor.tokenizer) for name in names}
    return frozenset(token for token in found if isinstance(token, str) and token)


def process(processor: Any, prompt: str, response: str, images: list[Image.Image], special: bool) -> Processed:
    """Run a processor over one prompt with its images, and tokenize the result together with the response.

    The processor is a shallow copy with `_Tail` as its tokenizer: the processor expands the images of the prompt only,
    then
    prompt and response are tokenized as one text. So the response stays verbatim, and its start is known, whatever the
    processor writes for an image.

    Args:
        processor: a transformers processor; it is not changed.
        prompt: the rendered prompt, with `placeholder_token` once for every image.
        response: the response verbatim.
        images: RGB images.
        special: let the tokenizer add its special tokens.

    Raises:
        ImageError: `image_unreadable`: the processor rejects an image, e.g. one that is far too narrow.
        ProcessorError: the processor does not pass its text to the tokenizer exactly once.
    """
    tail = _Tail(processor.tokenizer, response)
    own = copy.copy(processor)
    own.tokenizer = tail
    try:
        batch = own(images=images, text=[prompt], add_special_tokens=special, return_tensors="pt")
    except (ValueError, ZeroDivisionError) as error:
        raise ImageError("image_unreadable", str(error)) from error
    except (TypeError, AttributeError) as error:
        # Not the image's fault: e.g. an old folder whose processor_config.json lacks the patch size.
        raise ProcessorError(f"{type(processor).__name__} cannot process an image: {error}") from error
    if tail.calls != 1:
        raise ProcessorError(
            f"{type(processor).__name__} is not supported: it tokenizes {tail.calls} times for one text"
        )
    model_inputs = {name: value for name, value in batch.items() if name not in ("input_ids", "attention_mask")}
    for name, value in model_inputs.items():
        if not isinstance(value, Tensor):
            raise ProcessorError(
                f"{type(processor).__name__} is not supported: it returns {name} as {type(value).__name__}, "
                "not as a tensor"
            )
    ids = batch["input_ids"][0].tolist()
    return Processed(ids, tail.offsets, tail.prompt + response, len(tail.prompt), model_inputs)


def along_sequence(name: str, tensor: Tensor, length: int) -> bool:
    """Return True if a model input has a value for every token: [1, T], e.g. `token_type_ids`, `mm_token_type_ids`."""
    return name.endswith("_ids") and tensor.shape == (1, length)


def fitted(model_inputs: Mapping[str, Tensor], length: int, kept: int) -> dict[str, Tensor]:
    """Return model inputs for a sequence that was resized from `length` to `kept` tokens; new ones are text (0)."""
    result = dict(model_inputs)
    for name, tensor in model_inputs.items():
        if along_sequence(name, tensor, length):
            padding = torch.zeros(1, max(0, kept - length), dtype=tensor.dtype)
            result[name] = torch.cat([tensor[:, :kept], padding], dim=1)
    return result


class _Tail:
    """A tokenizer that appends a response to its single text, and records text and offsets."""

    def __init__(self, tokenizer: Any, response: str) -> None:
        self._tokenizer = tokenizer
        self._response = response
        self.calls = 0
        self.prompt = ""
        self.offsets: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str | list[str], **options: Any) -> Any:
        texts = [text] if isinstance(text, str) else text
        if len(texts) != 1:
            raise ProcessorError(f"the processor tokenizes {len(texts)} texts for one")
        self.calls += 1
        self.prompt = texts[0]
        options |= {"return_offsets_mapping": True, "verbose": False, "padding": False, "truncation": False}
        batch = self._tokenizer([self.prompt + self._response], **options)
        self.offsets = [(int(start), int(end)) for start, end in batch.pop("offset_mapping")[0]]
        return batch
