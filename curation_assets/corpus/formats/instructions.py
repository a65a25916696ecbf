"""Formats whose rows have a field for the prompt and a field for the response: alpaca, prompt_response, mmathcot, m23k.

See each reader for the way in which it combines fields.
"""

from __future__ import annotations

from curation_assets.corpus.drafts import Refused, Turn
from curation_assets.corpus.fields import MISSING, Row, first_of, kind, text
from curation_assets.corpus.row_parts import (
    PROMPT_NAMES,
    SYSTEM_NAMES,
    Candidate,
    Format,
    Reading,
    candidates_in,
    prompt_turns,
    system_turns,
)

# `answer` comes last: next to another response it is the explicit answer, by itself it is the response.
RESPONSE_NAMES = (
    "response",
    "responses",
    "completion",
    "completions",
    "generation",
    "generations",
    "output",
    "outputs",
    "solution",
    "rationale",
    "answer",
)


def _matches_alpaca(row: Row) -> bool:
    return "instruction" in row and "output" in row


def _read_alpaca(row: Row) -> Reading:
    """Read {instruction, input?, output, system?, history?}; the input follows the instruction on a new line."""
    turns = list(system_turns(row))
    history = row.get("history")
    if history is not None:
        turns += _history(history)
    said = _instruction(row)
    if said.strip():
        turns.append(Turn("user", said))
    return Reading(
        tuple(turns) if said.strip() else (),
        candidates_in(row.get("output", MISSING), "output"),
        prompt_fields=frozenset({"instruction", "input", "history", *SYSTEM_NAMES}),
        response_fields=frozenset({"output"}),
    )


def _instruction(row: Row) -> str:
    parts = [text(row[name], name) for name in ("instruction", "input") if row.get(name) is not None]
    return "\n".join(part for part in parts if part.strip())


def _history(value: object) -> list[Turn]:
    turns: list[Turn] = []
    if not isinstance(value, list):
        raise Refused("wrong_type", f"history must be a list of [question, reply] pairs, not {kind(value)}")
    for index, pair in enumerate(value):
        if not isinstance(pair, list) or len(pair) != 2:
            raise Refused("wrong_type", f"history[{index}] must be a [question, reply] pair")
        turns.append(Turn("user", text(pair[0], f"history[{index}][0]")))
        turns.append(Turn("assistant", text(pair[1], f"history[{index}][1]")))
    return turns


def _matches_prompt_response(row: Row) -> bool:
    return first_of(row, PROMPT_NAMES) is not None and first_of(row, (*RESPONSE_NAMES, "steps")) is not None


def _read_prompt_response(row: Row) -> Reading:
    """Read the first known name of each field; a list of responses has one candidate per entry."""
    asked = first_of(row, PROMPT_NAMES)
    said = first_of(row, RESPONSE_NAMES)
    # In a row of steps without a response, a short answer is the answer, not the response.
    if said == "answer" and isinstance(row.get("steps"), list):
        said = None
    # As in alpaca, the input belongs to the instruction.
    joined = asked == "instruction" and isinstance(row["instruction"], str) and isinstance(row.get("input"), str)
    value = _instruction(row) if joined else row[asked] if asked else None
    talk = prompt_turns(value, row, asked or "prompt")
    return Reading(
        talk.turns,
        candidates_in(row[said], said) if said else (Candidate(),),
        talk.images,
        prompt_fields=frozenset({asked, *SYSTEM_NAMES, *(["input"] if joined else [])} if asked else ()),
        response_fields=frozenset({said} if said else ()),
    )


def _matches_mmathcot(row: Row) -> bool:
    return {"image_url", "instruction", "output"} <= row.keys()


def _read_mmathcot(row: Row) -> Reading:
    """Read {image_url, instruction, output}; image fields are handled as in every format."""
    talk = prompt_turns(row.get("instruction"), row, "instruction")
    return Reading(
        talk.turns,
        (Candidate(row.get("output", MISSING)),),
        talk.images,
        prompt_fields=frozenset({"instruction", *SYSTEM_NAMES}),
        response_fields=frozenset({"output"}),
    )


def _matches_m23k(row: Row) -> bool:
    return {"prompt", "reasoning", "distilled_answer_string"} <= row.keys()


def _read_m23k(row: Row) -> Reading:
    """Read {prompt, reasoning, distilled_answer_string}: the reasoning in think tags, then the distilled answer.

    The tags are those of the model that wrote both parts; no other text is added. The distilled answer is also the
    explicit answer.
    """
    talk = prompt_turns(row.get("prompt"), row, "prompt")
    response: object = MISSING
    reasoning, answer = row.get("reasoning"), row.get("distilled_answer_string")
    if reasoning is not None and answer is not None:
        thought = text(reasoning, "reasoning").strip()
        said = text(answer, "distilled_answer_string").strip()
        response = f"<think>\n{thought}\n</think>\n\n{said}" if thought and said else ""
    return Reading(
        talk.turns,
        (Candidate(response, answer=MISSING if answer is None else str(answer).strip()),),
        talk.images,
        prompt_fields=frozenset({"prompt", *SYSTEM_NAMES}),
        response_fields=frozenset({"reasoning", "distilled_answer_string"}),
    )


ALPACA = Format("alpaca", _matches_alpaca, _read_alpaca)
PROMPT_RESPONSE = Format("prompt_response", _matches_prompt_response, _read_prompt_response)
MMATHCOT = Format("mmathcot", _matches_mmathcot, _read_mmathcot)
M23K = Format("m23k", _matches_m23k, _read_m23k)
