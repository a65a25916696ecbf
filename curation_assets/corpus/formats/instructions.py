"""Formats whose rows have fields for prompt and response: alpaca, prompt_response, mmathcot, m23k, s1k, stepwise.

See each reader for the way in which it combines fields.
"""

from __future__ import annotations

from dataclasses import replace

from curation_assets.corpus.drafts import Refused, Turn
from curation_assets.corpus.fields import MISSING, Row, absent, first_of, kind, text
from curation_assets.corpus.row_parts import (
    PROMPT_NAMES,
    SYSTEM_NAMES,
    Candidate,
    Format,
    Reading,
    candidates_in,
    is_reasoning,
    is_short_answer,
    prompt_turns,
    reasoning_field,
    system_turns,
    with_reasoning,
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
NAMES_BESIDE_REASONING = (*RESPONSE_NAMES[:-1], "content", "attempt", RESPONSE_NAMES[-1])
"""Names of the response in rows that store its reasoning beside it."""


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
    candidates, thought = with_reasoning(row, candidates_in(row.get("output", MISSING), "output"), reasoning_field(row))
    return Reading(
        tuple(turns) if said.strip() else (),
        candidates,
        prompt_fields=frozenset({"instruction", "input", "history", *SYSTEM_NAMES}),
        response_fields=frozenset({"output"}) | thought,
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
    if first_of(row, PROMPT_NAMES) is None:
        return False
    thought = reasoning_field(row)
    return first_of(row, (*RESPONSE_NAMES, "steps")) is not None or (thought is not None and is_reasoning(row[thought]))


def _read_prompt_response(row: Row) -> Reading:
    """Read the first known name of each field; a list of responses has one candidate per entry."""
    asked = first_of(row, PROMPT_NAMES)
    beside = reasoning_field(row)
    said = first_of(row, RESPONSE_NAMES if beside is None else NAMES_BESIDE_REASONING)
    # In a row of steps without a response, a short answer is the answer, not the response.
    if said == "answer" and isinstance(row.get("steps"), list):
        said = None
    # As in alpaca, the input belongs to the instruction.
    joined = asked == "instruction" and isinstance(row["instruction"], str) and isinstance(row.get("input"), str)
    value = _instruction(row) if joined else row[asked] if asked else None
    talk = prompt_turns(value, row, asked or "prompt")
    candidates, thought = with_reasoning(row, candidates_in(row[said], said) if said else (Candidate(),), beside)
    if thought and said == "answer":
        # What follows the reasoning is the explicit answer as well, if it is short.
        candidates = tuple(
            replace(one, answer=one.response) if is_short_answer(one.response) else one for one in candidates
        )
    return Reading(
        talk.turns,
        candidates,
        talk.images,
        prompt_fields=frozenset({asked, *SYSTEM_NAMES, *(["input"] if joined else [])} if asked else ()),
        response_fields=frozenset({said} if said else ()) | thought,
        label=talk.label(),
    )


def _matches_mmathcot(row: Row) -> bool:
    return {"image_url", "instruction", "output"} <= row.keys()


def _read_mmathcot(row: Row) -> Reading:
    """Read {image_url, instruction, output}; image fields are handled as in every format."""
    talk = prompt_turns(row.get("instruction"), row, "instruction")
    candidates, thought = with_reasoning(row, (Candidate(row.get("output", MISSING)),), reasoning_field(row))
    return Reading(
        talk.turns,
        candidates,
        talk.images,
        prompt_fields=frozenset({"instruction", *SYSTEM_NAMES}),
        response_fields=frozenset({"output"}) | thought,
        label=talk.label(),
    )


def _matches_m23k(row: Row) -> bool:
    return {"prompt", "reasoning", "distilled_answer_string"} <= row.keys()


def _read_m23k(row: Row) -> Reading:
    """Read {prompt, reasoning, distilled_answer_string}; the distilled answer is also the explicit answer."""
    talk = prompt_turns(row.get("prompt"), row, "prompt")
    reasoning, said = row.get("reasoning"), row.get("distilled_answer_string")
    candidate = Candidate()
    if reasoning is not None and said is not None:
        thought, reply = text(reasoning, "reasoning"), text(said, "distilled_answer_string")
        # Without one of the parts the row is not a trace of this data set.
        candidate = Candidate(reply, thought, reply.strip()) if thought.strip() and reply.strip() else Candidate("")
    return Reading(
        talk.turns,
        (candidate,),
        talk.images,
        prompt_fields=frozenset({"prompt", *SYSTEM_NAMES}),
        response_fields=frozenset({"reasoning", "distilled_answer_string"}),
        label=talk.label(),
    )


def _matches_stepwise(row: Row) -> bool:
    steps, labels = row.get("completions"), row.get("labels")
    return (
        "prompt" in row
        and isinstance(steps, list)
        and isinstance(labels, list)
        and len(steps) == len(labels)
        and all(isinstance(step, str) for step in steps)
    )


def _read_stepwise(row: Row) -> Reading:
    """Read TRL's {prompt, completions, labels}: the steps of one response; their labels stay in `extra`."""
    talk = prompt_turns(row.get("prompt"), row, "prompt")
    return Reading(
        talk.turns,
        (Candidate(steps=row.get("completions", MISSING)),),
        talk.images,
        prompt_fields=frozenset({"prompt", *SYSTEM_NAMES}),
        response_fields=frozenset({"completions"}),
        label=talk.label(),
    )


_TRAJECTORY = "thinking_trajectory"


def _matches_s1k(row: Row) -> bool:
    return "question" in row and bool(_attempts(row))


def _attempts(row: Row) -> list[tuple[str, str, str | None]]:
    """Return the fields of each thinking trajectory and of the attempt that follows it, and who wrote them."""
    found: list[tuple[str, str, str | None]] = []
    for name in row:
        writer, mark, rest = name.partition(_TRAJECTORY)
        if name == "thinking_trajectories":
            found.append((name, "attempt", None))
        elif mark and not rest and not absent(row[name]):
            attempt = f"{writer}attempt"
            found.append((name, attempt if attempt in row else "attempt", writer.rstrip("_") or None))
    return [one for one in found if not absent(row[one[0]])]


def _read_s1k(row: Row) -> Reading:
    """Read {question, solution, [WRITER_]thinking_trajectory, [WRITER_]attempt}: a candidate for each writer.

    s1K-1.1 holds two traces for each question; `thinking_trajectories` is a list of one text.
    """
    talk = prompt_turns(row.get("question"), row, "question")
    attempts, solution = _attempts(row), row.get("solution")
    short = is_short_answer(solution)
    used = {name for thought, reply, _ in attempts for name in (thought, reply)} | ({"solution"} if short else set())
    candidates = [
        Candidate(
            row.get(reply, MISSING),
            row[thought],
            solution if short else MISSING,
            generator=MISSING if writer is None else writer,
        )
        for thought, reply, writer in attempts
    ]
    return Reading(
        talk.turns,
        tuple(candidates),
        talk.images,
        prompt_fields=frozenset({"question", *SYSTEM_NAMES}),
        response_fields=frozenset(used),
        label=talk.label(),
    )


ALPACA = Format("alpaca", _matches_alpaca, _read_alpaca)
PROMPT_RESPONSE = Format("prompt_response", _matches_prompt_response, _read_prompt_response)
MMATHCOT = Format("mmathcot", _matches_mmathcot, _read_mmathcot)
M23K = Format("m23k", _matches_m23k, _read_m23k)
S1K = Format("s1k", _matches_s1k, _read_s1k)
STEPWISE = Format("stepwise", _matches_stepwise, _read_stepwise)
