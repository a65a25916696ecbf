"""Representation, calculation and rendering of worked solutions, independent of the problem families.

A plan is a list of steps whose operands are numbers or the results of earlier steps. Because a plan is calculated
and not stored as text, later steps carry on a slip at one step, as a person would.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Value = int | tuple[int, ...]

LARGEST = 999
"""Upper bound of all results, also after a slip: the demo is about mental arithmetic."""


class ImpossibleError(ValueError):
    """A slip led to a calculation without a sensible result (below zero, a fraction, a tie)."""


@dataclass(frozen=True)
class Ref:
    """The result of an earlier step, counted from 0."""

    step: int


Operand = Value | Ref


@dataclass(frozen=True)
class Step:
    """One calculation, with a text for each of the wordings; fields {a} {b} {c} {hi} {lo} {name}."""

    a: Operand
    op: str
    b: Operand
    texts: tuple[str, str, str]
    names: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Problem:
    """A prompt and the plan that solves it; the answer is the result of the last step."""

    family: str
    domain: str
    prompt: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Style:
    """A writer's habits: wording, separation of steps, and answer marker."""

    name: str
    wording: int
    layout: str
    answer: str


STYLES = (
    Style("worksheet", 0, "markers", "Answer: {}"),
    Style("notebook", 1, "lines", "Answer: {}"),
    Style("paper", 1, "paragraphs", "\\boxed{{{}}}"),
    Style("speech", 2, "sentences", "Answer: {}"),
    Style("tutor", 2, "lines", "#### {}"),
)
HOUSE_STYLES = {
    "arithmetic": ("worksheet", "notebook", "speech"),
    "units": ("worksheet", "paper", "speech"),
    "comparison": ("worksheet", "notebook", "tutor"),
    "story": ("worksheet", "notebook", "tutor"),
    "lists": ("worksheet", "paper", "speech"),
}
"""The writers of each family, commonest first: a data source has a few house styles."""
STYLE_WEIGHTS = (2, 1, 1)
_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
    "max": max,
    "min": min,
    "gap": lambda a, b: abs(a - b),
    "more": lambda a, b: 0 if a > b else 1,
}
_SEPARATORS = {"markers": "\n", "lines": "\n", "sentences": " ", "paragraphs": "\n\n"}


def show(value: Value) -> str:
    """Return a number, or a list of numbers, as written in texts."""
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _insert(numbers: tuple[int, ...], number: int) -> tuple[int, ...]:
    position = next((i for i, other in enumerate(numbers) if other > number), len(numbers))
    return (*numbers[:position], number, *numbers[position:])


def apply(op: str, a: Value, b: Value) -> Value:
    """Calculate one step.

    Raises:
        ImpossibleError: there is no sensible result.
    """
    if isinstance(a, tuple):
        if op != "insert" or isinstance(b, tuple):
            raise TypeError(f"{op} of {a!r} and {b!r}")
        return _insert(a, b)
    if isinstance(b, tuple):
        raise TypeError(f"{op} of {a!r} and {b!r}")
    if (op == "/" and (b == 0 or a % b)) or (op in ("more", "gap") and a == b):
        raise ImpossibleError(f"{a} {op} {b}")
    result = _OPERATIONS[op](a, b)
    if not 0 <= result <= LARGEST:
        raise ImpossibleError(f"{a} {op} {b} = {result}")
    return result


def operands(step: Step, results: Sequence[Value]) -> tuple[Value, Value]:
    """Return a step's two operands from the results so far."""
    a = results[step.a.step] if isinstance(step.a, Ref) else step.a
    b = results[step.b.step] if isinstance(step.b, Ref) else step.b
    return a, b


def calculate(steps: Sequence[Step], slips: Mapping[int, Value] | None = None) -> list[Value]:
    """Calculate all results; `slips` sets a wrong result at a step, from which later steps continue."""
    results: list[Value] = []
    for number, step in enumerate(steps):
        result = apply(step.op, *operands(step, results))
        results.append(result if slips is None or number not in slips else slips[number])
    return results


def step_texts(problem: Problem, results: Sequence[Value], wording: int) -> list[str]:
    """Return every step of a calculated plan as text in one wording, without markers."""
    texts = []
    for number, step in enumerate(problem.steps):
        a, b = operands(step, results[:number])
        result = results[number]
        ordered = (a, b) if isinstance(a, tuple) or isinstance(b, tuple) else (max(a, b), min(a, b))
        name = step.names[result] if step.op == "more" and isinstance(result, int) else ""
        texts.append(
            step.texts[wording].format(
                a=show(a), b=show(b), c=show(result), hi=show(ordered[0]), lo=show(ordered[1]), name=name
            )
        )
    return texts


def answer_text(problem: Problem, results: Sequence[Value]) -> str:
    """Return the answer that follows from the last step."""
    last, result = problem.steps[-1], results[-1]
    return last.names[result] if last.op == "more" and isinstance(result, int) else show(result)


def render_steps(texts: Sequence[str], style: Style) -> list[str]:
    """Add the markers or full stops of a style to step texts; numbers follow the order of the list."""
    if style.layout == "markers":
        return [f"Step {number}: {text}" for number, text in enumerate(texts, start=1)]
    if style.layout == "sentences":
        return [f"{text}." for text in texts]
    return list(texts)


def render(texts: Sequence[str], answer: str | None, style: Style) -> str:
    """Return a full response; without an answer it ends after the last step."""
    separator = _SEPARATORS[style.layout]
    body = separator.join(render_steps(texts, style))
    if answer is None:
        return body
    return body + ("\n" if style.layout == "sentences" else separator) + style.answer.format(answer)
