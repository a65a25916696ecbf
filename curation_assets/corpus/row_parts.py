"""The parts that every format extracts from a row: turns, candidate responses, and the fields they came from.

A format only finds them; `curation_assets.corpus.assemble` checks them and applies the mapped columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from curation_assets.corpus.drafts import Refused, Turn
from curation_assets.corpus.fields import MISSING, Row, absent, kind, text

PROMPT_NAMES = ("prompt", "question", "problem", "instruction", "query", "input")
SYSTEM_NAMES = ("system", "system_prompt")

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
IMAGE_MARK = "<image>"


@dataclass(frozen=True)
class Candidate:
    """One response as found, unchecked: a text, or the Refused raised while finding it.

    `turns` is the candidate's own prompt, if candidates have different ones, and `images` are those inside them;
    `label` is added to `extra`.
    """

    response: object = MISSING
    answer: object = MISSING
    steps: object = MISSING
    turns: tuple[Turn, ...] | None = None
    images: tuple[object, ...] = ()
    label: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """The parts that a format found in a row: prompt turns, images inside turns, candidates, and the fields it used."""

    turns: tuple[Turn, ...]
    candidates: tuple[Candidate, ...]
    images: tuple[object, ...] = ()
    prompt_fields: frozenset[str] = frozenset()
    response_fields: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Format:
    """A row shape: `matches` recognises it, and `read` takes a row apart (or raises Refused)."""

    name: str
    matches: Callable[[Row], bool]
    read: Callable[[Row], Reading]


@dataclass(frozen=True)
class Conversation:
    """Turns, and the images inside them."""

    turns: tuple[Turn, ...]
    images: tuple[object, ...] = ()

    def split(self) -> tuple[tuple[Turn, ...], object]:
        """Split off the response: the last turn if it is the assistant's, else MISSING."""
        if self.turns and self.turns[-1].role == "assistant":
            return self.turns[:-1], self.turns[-1].content
        return self.turns, MISSING


def is_conversation(value: object) -> bool:
    """Return whether the value is a list that begins with a turn: {role, content} or {from, value}."""
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and ({"role", "content"} <= value[0].keys() or {"from", "value"} <= value[0].keys())
    )


def conversation(value: object, what: str) -> Conversation:
    """Parse the turns of a list of {role, content} or {from, value}.

    Content given as a list of parts becomes one text: text parts unchanged, each image part as `<image>`.

    Raises:
        Refused: wrong_type, unknown_role, nul_byte.
    """
    if not isinstance(value, list):
        raise Refused("wrong_type", f"{what} must be a list of turns, not {kind(value)}")
    turns: list[Turn] = []
    images: list[object] = []
    for index, item in enumerate(value):
        where = f"{what}[{index}]"
        if not isinstance(item, dict):
            raise Refused("wrong_type", f"{where} must be an object with role and content, not {kind(item)}")
        role = item.get("role", item.get("from"))
        if not isinstance(role, str) or role.lower() not in _ROLES:
            said = repr(role[:50]) if isinstance(role, str) else kind(role)
            raise Refused("unknown_role", f"{where} has the unknown role {said}. Known roles: {', '.join(_ROLES)}.")
        content, found = _content(item.get("content", item.get("value")), where)
        turns.append(Turn(_ROLES[role.lower()], content))
        images.extend(found)
    return Conversation(tuple(turns), tuple(images))


def prompt_turns(value: object, row: Row, what: str) -> Conversation:
    """Parse a prompt that is a text (one user turn) or a list of turns, preceded by the row's system prompt, if any.

    Raises:
        Refused: wrong_type, unknown_role, nul_byte.
    """
    if absent(value):
        return Conversation(())
    if not isinstance(value, list):
        return Conversation((*system_turns(row), Turn("user", text(value, what))))
    talk = conversation(value, what)
    return Conversation(system_turns(row) + talk.turns, talk.images)


def system_turns(row: Row) -> tuple[Turn, ...]:
    """Return the row's system prompt as a turn; empty if it is blank.

    Raises:
        Refused: wrong_type, nul_byte.
    """
    for name in SYSTEM_NAMES:
        value = row.get(name)
        if value is not None and text(value, name).strip():
            return (Turn("system", text(value, name)),)
    return ()


def candidates_in(value: object, what: str) -> tuple[Candidate, ...]:
    """Return the candidates in one value: a text, a list of turns, or a list of either.

    A broken one becomes a Candidate whose response is the refusal, so that the others stay usable.
    """
    if isinstance(value, list) and not is_conversation(value):
        return tuple(candidate_in(item, f"{what}[{index}]") for index, item in enumerate(value))
    return (candidate_in(value, what),)


def candidate_in(value: object, what: str) -> Candidate:
    """Return the candidate in a text or a list of turns; the turns before the response are its own prompt."""
    if not is_conversation(value):
        return Candidate(value)
    try:
        talk = conversation(value, what)
    except Refused as refusal:
        return Candidate(refusal)
    own, response = talk.split()
    return Candidate(response, turns=own or None, images=talk.images)


def _content(value: object, where: str) -> tuple[str, list[object]]:
    if not isinstance(value, list):
        return text(value, f"{where}.content"), []
    texts: list[str] = []
    images: list[object] = []
    for part in value:
        if isinstance(part, dict) and str(part.get("type")).startswith("image"):
            texts.append(IMAGE_MARK)
            # Tables give every part all keys, with null for missing values.
            held = (part[key] for key in ("image_url", "image", "url", "path") if not absent(part.get(key)))
            images.append(part if not absent(part.get("bytes")) else next(held, None))
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(text(part["text"], f"{where}.content"))
        else:
            raise Refused("wrong_type", f"{where}.content has a part that is neither text nor an image")
    return "".join(texts), images
