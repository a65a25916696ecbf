"""Formats whose rows are conversations: messages, sharegpt, openthoughts.

In all of them, the last turn must be the assistant's and is the response; the turns before it are the prompt, including
system prompts and earlier assistant turns.
"""

from __future__ import annotations

from dataclasses import replace

from curation_assets.corpus.drafts import Refused
from curation_assets.corpus.fields import Row
from curation_assets.corpus.row_parts import (
    SYSTEM_NAMES,
    Conversation,
    Format,
    Reading,
    conversation,
    is_conversation,
    system_turns,
    until_trained,
)

_SHAREGPT_FIELDS = ("conversations", "conversation")
_THOUGHT_MARKS = ("<|begin_of_thought|>", "<think>")


def _reading(talk: Conversation, fields: frozenset[str], after: Row) -> Reading:
    # Several data sets write a blank system turn if there is no system prompt.
    turns = tuple(turn for turn in talk.turns if turn.role != "system" or turn.content.strip())
    prompt, candidate = replace(talk, turns=turns).split()
    return Reading(prompt, (candidate,), talk.images, prompt_fields=fields, label=talk.label() | after)


def _read(row: Row, name: str) -> Reading:
    if row.get(name) == []:
        raise Refused("missing_prompt", f"{name} has no turns. Remove the row or map another field.")
    value, after = until_trained(row.get(name))
    talk = conversation(value, name)
    system = system_turns(row)
    if any(turn.role == "system" and turn.content.strip() for turn in talk.turns):
        # The conversation's own system prompt takes precedence; the field stays in `extra`.
        return _reading(talk, frozenset({name}), after)
    if system:
        talk = replace(talk, turns=system + talk.turns)
    return _reading(talk, frozenset({name, *SYSTEM_NAMES}), after)


def _matches_messages(row: Row) -> bool:
    return is_conversation(row.get("messages"))


def _read_messages(row: Row) -> Reading:
    return _read(row, "messages")


def _sharegpt_field(row: Row) -> str:
    return next((name for name in _SHAREGPT_FIELDS if name in row), _SHAREGPT_FIELDS[0])


def _matches_sharegpt(row: Row) -> bool:
    return is_conversation(row.get(_sharegpt_field(row)))


def _read_sharegpt(row: Row) -> Reading:
    return _read(row, _sharegpt_field(row))


def _matches_openthoughts(row: Row) -> bool:
    value = row.get("conversations")
    if not is_conversation(value) or not isinstance(value, list) or not isinstance(value[-1], dict):
        return False
    last = value[-1].get("value", value[-1].get("content"))
    return isinstance(last, str) and last.lstrip().startswith(_THOUGHT_MARKS)


MESSAGES = Format("messages", _matches_messages, _read_messages)
SHAREGPT = Format("sharegpt", _matches_sharegpt, _read_sharegpt)
# The same format, except for the tags inside the response, which are kept verbatim.
OPENTHOUGHTS = Format("openthoughts", _matches_openthoughts, _read_sharegpt)
