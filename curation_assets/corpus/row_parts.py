"""The parts that every format extracts from a row: turns, candidate responses, and the fields they came from.

A format only finds them; `curation_assets.corpus.assemble` checks them and applies the mapped columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from curation_assets.corpus.drafts import Refused, Turn
from curation_assets.corpus.fields import MISSING, Row, absent, first_of, kind, text, to_json
from curation_resources.scoring.samples import calls_of

PROMPT_NAMES = ("prompt", "question", "problem", "instruction", "query", "input")
SYSTEM_NAMES = ("system", "system_prompt")
REASONING_NAMES = (
    "reasoning_content",
    "reasoning",
    "thinking",
    "thinking_content",
    "thought",
    "thoughts",
    "complex_cot",
)
"""Fields, of a row or of a turn, that hold the reasoning before an answer which is stored beside it."""

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}
SHORT_ANSWER_CHARS = 200
"""A longer text under the name of an answer is another solution, and stays in `extra`."""

_TURN_KEYS = frozenset({"role", "from", "content", "value"})
PLAIN_TURN = 2
"""Keys of a turn that holds its role and its text alone."""

_CALLS = frozenset({"tool_calls", "function_call"})
_SPEAKS = frozenset({"tool_calls", "function_call", *REASONING_NAMES})
"""Fields of a turn beside which its content may be null."""
_TEXT_PARTS = ("text", "input_text", "output_text", None)
"""Types of parts that are text; in tables, parts may have no type."""

IMAGE_MARK = "<image>"


@dataclass(frozen=True)
class Candidate:
    """One response as found, unchecked: a text, or the Refused raised while finding it.

    Attributes:
        response: the text.
        reasoning: stored beside the response: a text, or a list of texts.
        answer: the explicit answer.
        steps: the explicit steps.
        generator: who wrote the response.
        turns: the candidate's own turns before its response.
        whole_prompt: whether these turns are the whole prompt; otherwise they follow the row's.
        images: the images inside these turns.
        label: what is added to `extra`.
        calls: tool calls after the text, as JSON objects with name and arguments.
        odd_calls: whether there are tool calls of another shape.
        missing: the detail of the refusal if there is no response.
    """

    response: object = MISSING
    reasoning: object = MISSING
    answer: object = MISSING
    steps: object = MISSING
    generator: object = MISSING
    turns: tuple[Turn, ...] | None = None
    images: tuple[object, ...] = ()
    label: Mapping[str, object] = field(default_factory=dict)
    calls: tuple[str, ...] = ()
    whole_prompt: bool = False
    odd_calls: bool = False
    missing: str = "the response is missing. Map it with corpus.columns.response."


@dataclass(frozen=True)
class Reading:
    """The parts that a format found in a row: prompt turns, images inside turns, candidates, and the fields it used.

    `label` is added to `extra`.
    """

    turns: tuple[Turn, ...]
    candidates: tuple[Candidate, ...]
    images: tuple[object, ...] = ()
    prompt_fields: frozenset[str] = frozenset()
    response_fields: frozenset[str] = frozenset()
    label: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """A row shape: `matches` recognises it, and `read` takes a row apart (or raises Refused)."""

    name: str
    matches: Callable[[Row], bool]
    read: Callable[[Row], Reading]


@dataclass(frozen=True)
class Conversation:
    """Turns, and the images inside them.

    Attributes:
        turns: the turns, each with what chat templates read beside its text.
        images: the images, in order.
        reasoning: reasoning beside the text of the last turn, if that is the assistant's.
        others: what else the turns hold, by position: weights, earlier reasoning, tool calls of the last turn.
        untrained: whether the last turn is marked with `loss: false`, `train: false` or `weight: 0`.
        odd_calls: whether the last turn has tool calls of a shape that is not known.
    """

    turns: tuple[Turn, ...]
    images: tuple[object, ...] = ()
    reasoning: object = MISSING
    others: Mapping[str, Row] = field(default_factory=dict)
    untrained: bool = False
    odd_calls: bool = False

    def split(self) -> tuple[tuple[Turn, ...], Candidate]:
        """Split off the response: the last turn if it is the assistant's, else a candidate without one.

        Raises:
            Refused: not_trained: the last turn is marked as one not to train on.
        """
        if not self.turns or self.turns[-1].role != "assistant":
            ends = f"the last turn is the {self.turns[-1].role}'s" if self.turns else "the conversation has no turns"
            return self.turns, Candidate(
                missing=f"{ends}, so there is no response. End it with the assistant's turn, or map "
                "corpus.columns.response."
            )
        if self.untrained:
            raise Refused(
                "not_trained",
                "the last turn is marked as one not to train on (loss or train false, or weight 0), and no other turn "
                "can be the response. End the conversation with the turn to train on.",
            )
        last = self.turns[-1]
        calls = tuple(calls_of(last.record()))
        return self.turns[:-1], Candidate(last.content, self.reasoning, calls=calls, odd_calls=self.odd_calls)

    def label(self, name: str = "turns") -> dict[str, object]:
        """Return what the turns hold beside role and text, under the name that `extra` keeps it by."""
        return {name: dict(self.others)} if self.others else {}


def is_conversation(value: object) -> bool:
    """Return whether the value is a list that begins with a turn: {role, content} or {from, value}.

    A turn may lack its content where it holds something else, as in `conversation`.
    """
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    keys = value[0].keys()
    return {"role", "content"} <= keys or {"from", "value"} <= keys or ("role" in keys and not _SPEAKS.isdisjoint(keys))


def conversation(value: object, what: str) -> Conversation:
    """Parse the turns of a list of {role, content} or {from, value}.

    Content given as a list of parts becomes one text: text parts unchanged, each image part as `<image>`. Thinking
    parts, and fields of REASONING_NAMES, are reasoning. A turn's content may be null where the turn holds something
    else, or is the system's.

    Raises:
        Refused: wrong_type, unknown_role, nul_byte.
    """
    if not isinstance(value, list):
        raise Refused("wrong_type", f"{what} must be a list of turns, not {kind(value)}")
    turns: list[Turn] = []
    images: list[object] = []
    others: dict[str, Row] = {}
    thought: object = MISSING
    untrained = odd_calls = False
    for index, item in enumerate(value):
        where = f"{what}[{index}]"
        if not isinstance(item, dict):
            raise Refused("wrong_type", f"{where} must be an object with role and content, not {kind(item)}")
        role = item.get("role", item.get("from"))
        if not isinstance(role, str) or role.lower() not in _ROLES:
            said = repr(role[:50]) if isinstance(role, str) else kind(role)
            raise Refused(
                "unknown_role",
                f"{where} has the unknown role {said}. Map it under corpus.roles, e.g. environment: tool. Known roles: "
                f"{', '.join(_ROLES)}.",
            )
        role = _ROLES[role.lower()]
        held = item.get("content")
        if held is None:
            held = item.get("value")
        # Tables give every turn all keys, with null for missing values.
        beside: Row = {}
        if len(item) > PLAIN_TURN or held is None:
            beside = {key: own for key, own in item.items() if own is not None and key not in _TURN_KEYS}
            if item.get("content") is not None and item.get("value") is not None:
                beside["value"] = item["value"]
        if held is None and (role == "system" or not _SPEAKS.isdisjoint(beside)):
            held = ""
        untrained = bool(beside) and switched_off(beside)
        # The calls of a response become part of its text, so that their ids stay in `extra`.
        response = role == "assistant" and index == len(value) - 1
        rendered = _rendered(dict(beside) if response else beside) if beside else {}
        odd_calls = "tool_calls" not in rendered and not _CALLS.isdisjoint(beside)
        content, found, thoughts = _content(held, where)
        thought = MISSING
        name = reasoning_field({key: own for key, own in beside.items() if is_reasoning(own)}) if beside else None
        if role == "assistant" and (thoughts or name is not None):
            thought = "\n\n".join(thoughts) or beside.pop(name or "")
            if index < len(value) - 1:
                beside["reasoning"] = thought
        if beside:
            others[str(index)] = beside
        turns.append(Turn(role, content, to_json(rendered) if rendered else ""))
        images.extend(found)
    return Conversation(tuple(turns), tuple(images), thought, others, untrained, odd_calls)


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
    return replace(talk, turns=system_turns(row) + talk.turns)


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

    Several turns of the assistant alone are a candidate each. A broken one becomes a Candidate whose response is the
    refusal, so that the others stay usable.
    """
    if isinstance(value, list) and (not is_conversation(value) or _all_of_the_assistant(value)):
        return tuple(candidate_in(item, f"{what}[{index}]") for index, item in enumerate(value))
    return (candidate_in(value, what),)


def _all_of_the_assistant(turns: list[object]) -> bool:
    return len(turns) > 1 and set(map(_role_of, turns)) == {"assistant"}


def _role_of(turn: object) -> str | None:
    """Return the role of a turn; None if it has none that is known."""
    return _ROLES.get(str(turn.get("role", turn.get("from"))).lower()) if isinstance(turn, dict) else None


def candidate_in(value: object, what: str) -> Candidate:
    """Return the candidate in a text, a turn or a list of turns; turns before the response are its own prompt."""
    if isinstance(value, dict) and is_conversation([value]):
        value = [value]
    if not is_conversation(value):
        return Candidate(value)
    value, after = until_trained(value)
    try:
        talk = conversation(value, what)
        own, candidate = talk.split()
    except Refused as refusal:
        return Candidate(refusal)
    return replace(candidate, turns=own or None, images=talk.images, label=talk.label("response_turns") | after)


def reasoning_field(row: Row) -> str | None:
    """Return the field that holds the reasoning: the first of REASONING_NAMES that is not blank."""
    name = first_of(row, REASONING_NAMES)
    if name is None or not isinstance(row[name], str) or str(row[name]).strip():
        return name
    said = {key: own for key, own in row.items() if not isinstance(own, str) or own.strip()}
    return first_of(said, REASONING_NAMES)


def with_reasoning(
    row: Row, candidates: tuple[Candidate, ...], name: str | None
) -> tuple[tuple[Candidate, ...], frozenset[str]]:
    """Add the reasoning that field `name` stores beside the responses; return the candidates, and the field if used.

    A field that does not hold one text, or list of texts, for each candidate stays in `extra`.
    """
    if name is None:
        return candidates, frozenset()
    value = row[name]
    each = value if isinstance(value, list) and len(value) == len(candidates) else [value]
    if len(each) != len(candidates) or not all(map(is_reasoning, each)):
        return candidates, frozenset()
    found = (replace(one, reasoning=thought) for one, thought in zip(candidates, each, strict=True))
    return tuple(found), frozenset({name})


def is_reasoning(value: object) -> bool:
    """Return whether a value is a text that is not blank, or a list of texts of which one is not."""
    texts = value if isinstance(value, list) else [value]
    return all(isinstance(one, str) for one in texts) and any(str(one).strip() for one in texts)


def is_short_answer(value: object) -> bool:
    """Return whether a value may be an explicit answer: a number, or a short text of one line."""
    if isinstance(value, str):
        return 0 < len(value.strip()) <= SHORT_ANSWER_CHARS and "\n" not in value.strip()
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def with_roles(row: Row, roles: Mapping[str, str]) -> Row:
    """Return a row with the roles of turns replaced by those that they are mapped to, at any depth."""

    def mapped(value: object) -> object:
        if isinstance(value, list):
            return [mapped(one) for one in value]
        if not isinstance(value, dict):
            return value
        found = {name: mapped(one) if isinstance(one, (dict, list)) else one for name, one in value.items()}
        for name in ("role", "from"):
            if isinstance(said := found.get(name), str) and said.lower() in roles:
                found[name] = roles[said.lower()]
        return found

    return {name: mapped(value) if isinstance(value, (dict, list)) else value for name, value in row.items()}


def until_trained(value: object) -> tuple[object, dict[str, object]]:
    """Return a conversation up to the last assistant turn to train on, and the turns after it as a label.

    A conversation whose last turn is not marked as one not to train on, or without a turn to train on, stays whole.
    """
    if not isinstance(value, list) or not value or not isinstance(value[-1], dict) or not switched_off(value[-1]):
        return value, {}
    trained = (at for at, turn in enumerate(value) if _role_of(turn) == "assistant" and not switched_off(turn))
    last = max(trained, default=None)
    return (value, {}) if last is None else (value[: last + 1], {"following_turns": value[last + 1 :]})


def switched_off(turn: Row) -> bool:
    """Return whether a turn is marked as one not to train on."""
    return turn.get("loss") is False or turn.get("train") is False or turn.get("weight") in (0, False)


def _rendered(beside: Row) -> Row:
    """Take what chat templates read beside a turn's text out of `beside`, and return it.

    Tool calls are written as OpenAI's interface does: {id, type, function: {name, arguments}}, arguments as JSON text.
    Calls of another shape stay in `beside`.
    """
    found: Row = {}
    name = next((name for name in ("tool_calls", "function_call") if name in beside), None)
    if name is not None:
        held = beside[name]
        calls = [_call(one) for one in (held if isinstance(held, list) else [held])]
        if calls and None not in calls:
            found["tool_calls"] = calls
            del beside[name]
    for key in ("name", "tool_call_id"):
        if isinstance(beside.get(key), str):
            found[key] = beside.pop(key)
    return found


_CALL_POSITION = ("index", "strict")
_ARGUMENTS = ("arguments", "args", "parameters")


def _call(value: object) -> Row | None:
    """Return a tool call in OpenAI's shape; None if it has another, or fields beside it."""
    if not isinstance(value, dict):
        return None
    outer = _meaningful(value)
    call_id, kind_of_call = outer.pop("id", None), outer.pop("type", "function")
    inner = outer.pop("function", outer)
    if not isinstance(inner, dict) or (inner is not outer and outer):
        return None
    function = _meaningful(inner)
    name = function.pop("name", None)
    arguments = next((function.pop(key) for key in _ARGUMENTS if key in function), None)
    if not isinstance(name, str) or function:
        return None
    said = arguments if isinstance(arguments, str) else to_json({} if arguments is None else arguments)
    call: Row = {"type": kind_of_call, "function": {"name": name, "arguments": said}}
    if call_id is not None:
        call["id"] = call_id if isinstance(call_id, str) else to_json(call_id)
    return call


def _meaningful(value: Row) -> Row:
    """Return an object of a call without null values, and without where it stood in a stream or how it was decoded."""
    return {key: own for key, own in value.items() if own is not None and key not in _CALL_POSITION}


def _first_text(part: Row, *names: str) -> object:
    return next((part[name] for name in names if isinstance(part.get(name), str)), None)


def _content(value: object, where: str) -> tuple[str, list[object], list[str]]:
    """Return the text, the images and the reasoning in a turn's content."""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return text(value, f"{where}.content"), [], []
    texts: list[str] = []
    images: list[object] = []
    thoughts: list[str] = []
    for part in value:
        said: object = part if isinstance(part, str) else None
        if isinstance(part, dict):
            # A part of another type, such as a tool's result, is more than the text in it.
            said = _first_text(part, "text", "content") if part.get("type") in _TEXT_PARTS else None
        if isinstance(part, dict) and str(part.get("type")).startswith("image"):
            texts.append(IMAGE_MARK)
            # Tables give every part all keys, with null for missing values.
            named = (part[key] for key in ("image_url", "image", "url", "path") if not absent(part.get(key)))
            images.append(part if not absent(part.get("bytes")) else next(named, None))
        elif isinstance(part, dict) and part.get("type") in ("thinking", "reasoning"):
            thoughts.append(text(_first_text(part, "thinking", "reasoning", "text"), f"{where}.content"))
        elif said is not None:
            texts.append(text(said, f"{where}.content"))
        else:
            shown = repr(part.get("type")) if isinstance(part, dict) else kind(part)
            raise Refused("wrong_type", f"{where}.content has a part that is neither text nor an image: {shown}")
    return "".join(texts), images, thoughts
