"""Formats with a preferred and a rejected response: preference, ultrainteract.

Both responses become candidates of one prompt group, the chosen one first. The preference is not a verdict on
correctness; it is stored in `extra` as {"preference": "chosen" | "rejected"}.
"""

from __future__ import annotations

from dataclasses import replace

from curation_assets.corpus.drafts import Turn
from curation_assets.corpus.fields import MISSING, Row, first_of
from curation_assets.corpus.row_parts import (
    PROMPT_NAMES,
    SYSTEM_NAMES,
    Candidate,
    Format,
    Reading,
    candidate_in,
    conversation,
    is_conversation,
    prompt_turns,
    system_turns,
)

_PAIR = ("chosen", "rejected")


def _pair(row: Row, prompt: tuple[Turn, ...]) -> tuple[Candidate, ...]:
    """Return both candidates; a list of turns that includes a user turn has its own complete prompt."""
    candidates: list[Candidate] = []
    for name in _PAIR:
        value = row.get(name)
        found = candidate_in(MISSING if value is None else value, name)
        own = found.turns or ()
        turns = prompt + own
        if any(turn.role == "user" for turn in own):
            turns = own if any(turn.role == "system" for turn in own) else system_turns(row) + own
        candidates.append(replace(found, turns=turns, whole_prompt=True, label={**found.label, "preference": name}))
    return tuple(candidates)


def _matches_preference(row: Row) -> bool:
    return "chosen" in row and "rejected" in row


def _read_preference(row: Row) -> Reading:
    """Read {prompt? or conversations?, chosen, rejected}: texts, turns or lists of turns."""
    asked = first_of(row, PROMPT_NAMES)
    if asked is None and is_conversation(row.get("conversations")):
        asked = "conversations"
    talk = prompt_turns(row[asked] if asked else None, row, asked or "prompt")
    candidates = _pair(row, talk.turns)
    return Reading(
        talk.turns,
        candidates,
        talk.images,
        prompt_fields=frozenset({asked, *SYSTEM_NAMES} if asked else SYSTEM_NAMES),
        response_fields=frozenset(_PAIR),
        label=talk.label(),
    )


def _matches_ultrainteract(row: Row) -> bool:
    if "trajectory" in row:
        return is_conversation(row["trajectory"]) and _matches_preference(row)
    return {"instruction", "response", "parent_id", "id"} <= row.keys()


def _read_ultrainteract(row: Row) -> Reading:
    """Read SFT rows {task, dataset, instruction, response} or pairs {task, dataset, trajectory, chosen, rejected}."""
    candidates: tuple[Candidate, ...]
    fields: tuple[str, ...]
    if "trajectory" in row:
        talk = conversation(row["trajectory"], "trajectory")
        turns = system_turns(row) + talk.turns
        candidates, fields = _pair(row, turns), _PAIR
        asked = "trajectory"
    else:
        talk = prompt_turns(row.get("instruction"), row, "instruction")
        turns = talk.turns
        value = row.get("response")
        candidates, fields = (Candidate(MISSING if value is None else value),), ("response",)
        asked = "instruction"
    return Reading(
        turns,
        candidates,
        talk.images,
        prompt_fields=frozenset({asked, *SYSTEM_NAMES}),
        response_fields=frozenset(fields),
        label=talk.label(),
    )


PREFERENCE = Format("preference", _matches_preference, _read_preference)
ULTRAINTERACT = Format("ultrainteract", _matches_ultrainteract, _read_ultrainteract)
