"""Define the identity of samples and prompts: their hashes.

A sample's identity is its prompt turns, images, response, answer and explicit steps. Its origin (source, shard, row),
its generator and all other fields are excluded, so a trace that arrives twice is measured once.
The hash is BLAKE2b with a 16-byte digest over a length-prefixed encoding: each text is written as its number of UTF-8
bytes, a colon and the bytes; each list as its number of items and its items; an absent value has its own letter. No
two different values share an encoding. The leading tag holds the version of this definition: change the tag when the
definition changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from curation_assets.corpus.drafts import Turn

VERSION = 1


class Ids(NamedTuple):
    """The ids of a sample and of its prompt group: 32 hex characters each."""

    sample_id: str
    prompt_id: str


def identify(
    turns: Sequence[Turn],
    image_digests: Sequence[str],
    response: str,
    answer: str | None,
    steps: Sequence[str] | None,
) -> Ids:
    """Return both ids.

    The sample's encoding is the list [tag, turns, images, response, answer, steps], the prompt's the list
    [tag, turns, images]; a turn is the list [role, content], or [role, content, beside] if it has tool calls or a name.

    Raises:
        UnicodeEncodeError: a text contains half of a surrogate pair.
    """
    parts = [b"l%d:" % len(turns)]
    for role, content, beside in turns:
        raw = content.encode()
        parts += (b"l3:" if beside else b"l2:", _text(role), b"s%d:" % len(raw), raw)
        if beside:
            parts.append(_text(beside))
    parts.append(_texts(image_digests))
    prompt = b"".join(parts)
    # The response is long: hash it separately instead of copying it.
    said = response.encode()
    sample = hashlib.blake2b(_SAMPLE_HEAD + prompt + b"s%d:" % len(said), digest_size=16)
    sample.update(said)
    sample.update((_ABSENT if answer is None else _text(answer)) + (_ABSENT if steps is None else _texts(steps)))
    return Ids(sample.hexdigest(), hashlib.blake2b(_PROMPT_HEAD + prompt, digest_size=16).hexdigest())


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"s%d:%b" % (len(raw), raw)


def _texts(values: Sequence[str]) -> bytes:
    return b"l%d:" % len(values) + b"".join(map(_text, values))


_ABSENT = b"n"
_SAMPLE_HEAD = b"l6:" + _text(f"sample/{VERSION}")
_PROMPT_HEAD = b"l3:" + _text(f"prompt/{VERSION}")


def sample_id(
    turns: Sequence[Turn],
    image_digests: Sequence[str],
    response: str,
    answer: str | None,
    steps: Sequence[str] | None,
) -> str:
    """Return the id of a sample; see `identify`."""
    return identify(turns, image_digests, response, answer, steps).sample_id


def prompt_id(turns: Sequence[Turn], image_digests: Sequence[str]) -> str:
    """Return the id of a prompt group, equal for all responses to the same prompt; see `identify`."""
    return identify(turns, image_digests, "", None, None).prompt_id
