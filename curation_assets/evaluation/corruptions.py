"""Corruptions: what `curate audit` does to a sound trace to make its flawed twin.

Each is a `Corruption` in CORRUPTIONS; other packages add theirs through entry points of the group
`curation_assets.corruptions`. A corruption changes the text of one trace, with parts of another one where it needs
them, and says which steps it changed. Everything that it draws comes from the generator that it is given, so that the
same trace always gets the same twin.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from curation_resources.plugins import plugins

GROUP = "curation_assets.corruptions"
"""Entry points of this group name a `Corruption`."""

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_COUNTS = re.compile(r"\W{0,4}(?:[^\W\d]{1,12}\s*)?\d{1,3}\s*(?:[.):\uff1a\u3001](?:\s|$)|\W{0,3}[:\uff1a])")
_CHOICES = "ABCD"
"""Choices that any question with options has; `E` is exchanged for one of them, and never chosen."""
_MIDDLE = (0.3, 0.7)
"""Shares of the response between which it is truncated."""


@dataclass(frozen=True)
class Trace:
    """A response, taken apart: its steps, and the text around them.

    Attributes:
        steps: the text of each step [K].
        gaps: the text before each step and after the last one [K + 1]; the last one holds the answer.
        answer: where the last gap states the answer (start, end), in characters; None without an answer.
        changed: positions of the steps that a corruption changed or added.
    """

    steps: tuple[str, ...]
    gaps: tuple[str, ...]
    answer: tuple[int, int] | None = None
    changed: tuple[int, ...] = ()

    @property
    def response(self) -> str:
        """The response as one text."""
        return "".join(gap + step for gap, step in zip(self.gaps, (*self.steps, ""), strict=True))

    def span(self, position: int) -> tuple[int, int]:
        """Return where a step is in the response (start, end), in characters."""
        start = sum(map(len, self.steps[:position])) + sum(map(len, self.gaps[: position + 1]))
        return start, start + len(self.steps[position])

    def stated_answer(self) -> str | None:
        """Return the text of the answer; None without one."""
        return None if self.answer is None else self.gaps[-1][slice(*self.answer)]


@dataclass(frozen=True)
class Corruption:
    """A way to spoil a trace.

    Attributes:
        name: its name in tables and on the command line.
        summary: what it does, in a few words.
        apply: returns the flawed twin of a trace; None if it cannot be applied to it, or changes nothing. The second
            argument is a trace of another prompt, from the same source where there is one.
    """

    name: str
    summary: str
    apply: Callable[[Trace, Trace, Random], Trace | None]


def _other_digit(number: str, draw: Random) -> str:
    """Return a number with one digit exchanged; a number of several digits does not begin with 0 afterwards."""
    place = draw.choice([index for index, sign in enumerate(number) if sign.isdigit()])
    leads = place == 0 and len(number) > 1
    # Digits of other scripts stay in their script.
    zero = ord(number[place]) - int(number[place])
    digit = chr(zero + draw.choice([one for one in range(int(leads), 10) if one != int(number[place])]))
    return number[:place] + digit + number[place + 1 :]


def _numbers(text: str) -> list[re.Match[str]]:
    """Return the numbers of a text, without the one that counts the step, as in `Step 3:` or `3.`."""
    counts = _COUNTS.match(text)
    return list(_NUMBER.finditer(text, counts.end() if counts else 0))


def _with_other_number(text: str, draw: Random) -> str | None:
    found = _numbers(text)
    if not found:
        return None
    start, end = draw.choice(found).span()
    return text[:start] + _other_digit(text[start:end], draw) + text[end:]


def _wrong_number(trace: Trace, _other: Trace, draw: Random) -> Trace | None:
    places = [place for place, step in enumerate(trace.steps) if _numbers(step)]
    if not places:
        return None
    place = draw.choice(places)
    step = _with_other_number(trace.steps[place], draw)
    assert step is not None
    return replace(trace, steps=_put(trace.steps, place, step), changed=(place,))


def _wrong_answer(trace: Trace, other: Trace, draw: Random) -> Trace | None:
    stated = trace.stated_answer()
    if stated is None or trace.answer is None:
        return None
    letter = stated.strip("().: ")
    wrong = _with_other_number(stated, draw)
    if len(letter) == 1 and letter.upper() in f"{_CHOICES}E":
        choice = draw.choice([one for one in _CHOICES if one != letter.upper()])
        wrong = stated.replace(letter, choice if letter.isupper() else choice.lower())
    if wrong is None:
        wrong = other.stated_answer()
    if wrong is None or wrong.strip().lower() == stated.strip().lower():
        return None
    start, end = trace.answer
    last = trace.gaps[-1]
    gaps = (*trace.gaps[:-1], last[:start] + wrong + last[end:])
    return replace(trace, gaps=gaps, answer=(start, start + len(wrong)))


def _foreign_response(_trace: Trace, other: Trace, _draw: Random) -> Trace | None:
    return replace(other, changed=tuple(range(len(other.steps))))


def _shuffled_steps(trace: Trace, _other: Trace, draw: Random) -> Trace | None:
    if len(set(trace.steps)) < 2:
        return None
    steps = list(trace.steps)
    while tuple(steps) == trace.steps:
        draw.shuffle(steps)
    return replace(trace, steps=tuple(steps))


def _dropped_step(trace: Trace, _other: Trace, draw: Random) -> Trace | None:
    if len(trace.steps) < 2:
        return None
    place = draw.randrange(len(trace.steps))
    # The gap on one side goes too: before the last step, else after the step.
    gap = place if place == len(trace.steps) - 1 else place + 1
    return replace(trace, steps=_without(trace.steps, place), gaps=_without(trace.gaps, gap))


def _repeated_step(trace: Trace, _other: Trace, draw: Random) -> Trace | None:
    if not trace.steps:
        return None
    place = draw.randrange(len(trace.steps))
    between = trace.gaps[1] if len(trace.steps) > 1 else "\n"
    steps = (*trace.steps[: place + 1], trace.steps[place], *trace.steps[place + 1 :])
    gaps = (*trace.gaps[: place + 1], between, *trace.gaps[place + 1 :])
    return replace(trace, steps=steps, gaps=gaps, changed=(place + 1,))


def _irrelevant_step(trace: Trace, other: Trace, draw: Random) -> Trace | None:
    if not trace.steps or not other.steps:
        return None
    place, step = draw.randrange(len(trace.steps)), draw.choice(other.steps)
    if step == trace.steps[place]:
        return None
    return replace(trace, steps=_put(trace.steps, place, step), changed=(place,))


def _truncated(trace: Trace, _other: Trace, draw: Random) -> Trace | None:
    response = trace.response
    kept = response[: round(len(response) * draw.uniform(*_MIDDLE))].rstrip()
    if not kept:
        return None
    steps: list[str] = []
    position = 0
    for place in range(len(trace.steps)):
        start, end = trace.span(place)
        if start >= len(kept):
            break
        steps.append(kept[start:end])
        position = place + 1
    ends = trace.span(position - 1)[1] if position else 0
    return Trace(tuple(steps), (*trace.gaps[:position], kept[ends:]))


def _put(parts: Sequence[str], place: int, text: str) -> tuple[str, ...]:
    return (*parts[:place], text, *parts[place + 1 :])


def _without(parts: Sequence[str], place: int) -> tuple[str, ...]:
    return (*parts[:place], *parts[place + 1 :])


CORRUPTIONS = [
    Corruption("wrong_number", "one digit of one number in one step is exchanged", _wrong_number),
    Corruption("wrong_answer", "the stated answer is exchanged, the steps stay", _wrong_answer),
    Corruption("foreign_response", "the response to another prompt", _foreign_response),
    Corruption("shuffled_steps", "the steps in another order", _shuffled_steps),
    Corruption("dropped_step", "one step is missing", _dropped_step),
    Corruption("repeated_step", "one step is repeated", _repeated_step),
    Corruption("irrelevant_step", "one step is exchanged for a step of another trace", _irrelevant_step),
    Corruption("truncated", "the response ends before its answer", _truncated),
]


def corruptions() -> dict[str, Corruption]:
    """Return all corruptions by name: those above, and those of other packages.

    Raises:
        PluginError: an entry point cannot be used.
        ImportError: two corruptions have the same name.
    """
    found: dict[str, Corruption] = {}
    for one in [*CORRUPTIONS, *plugins(GROUP, Corruption)]:
        if one.name in found:
            raise ImportError(f"two corruptions have the name {one.name}")
        found[one.name] = one
    return found
