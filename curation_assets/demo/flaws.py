"""The flaws that the demo plants in sound responses, one kind at a time, in equal numbers.

They imitate the slips of careless writers and careless data pipelines. None is designed around what a method measures:
a method has to find them in text that is otherwise well formed.

- `wrong_step`: one result is wrong by an ordinary slip; later steps and the answer continue from it (the answer may be
  correct by chance, as when the wrong person still has more).
- `wrong_answer`: all steps are correct, but the answer line is not.
- `irrelevant`: one or two steps are replaced by, or joined by, steps of another problem.
- `shuffled`: the steps are reordered; step numbers still count up.
- `truncated`: the text ends before the answer, often in the middle of a step.
- `repeated`: one step is repeated two to four more times, in place.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from curation_assets.demo.plans import (
    LARGEST,
    ImpossibleError,
    Problem,
    Style,
    Value,
    answer_text,
    calculate,
    operands,
    render,
    show,
    step_texts,
)


@dataclass(frozen=True)
class Written:
    """A response and its flaw; `flawed_step` counts from 1, and is null if no single step is flawed."""

    response: str
    flaw: str
    flawed_step: int | None
    answer: str | None
    steps: int


def clean(problem: Problem, style: Style) -> Written:
    """Write the sound response to a problem."""
    results = calculate(problem.steps)
    answer = answer_text(problem, results)
    texts = step_texts(problem, results, style.wording)
    return Written(render(texts, answer, style), "clean", None, answer, len(texts))


def number_slips(rng: random.Random, value: int) -> list[int]:
    """Return plausible wrong readings of a number in random order: off by a little, off by ten, digits swapped."""
    slips = {value + offset for offset in (-10, -3, -2, -1, 1, 2, 3, 10)} | {int(str(value)[::-1])}
    ordered = sorted(slip for slip in slips if 0 <= slip <= LARGEST and slip != value)
    rng.shuffle(ordered)
    return ordered


def list_slips(rng: random.Random, numbers: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the ways to swap two neighbours of a list, in random order."""
    swaps = [
        (*numbers[:i], numbers[i + 1], numbers[i], *numbers[i + 2 :])
        for i in range(len(numbers) - 1)
        if numbers[i] != numbers[i + 1]
    ]
    rng.shuffle(swaps)
    return swaps


def _step_slips(rng: random.Random, problem: Problem, results: Sequence[Value], number: int) -> list[Value]:
    step, result = problem.steps[number], results[number]
    a, b = operands(step, results[:number])
    if isinstance(result, tuple):
        return list(list_slips(rng, result))
    if step.op == "more":
        return [1 - result]
    if step.op in ("max", "min"):
        return [b if result == a else a]
    return list(number_slips(rng, result))


def wrong_step(problem: Problem, style: Style, other: Problem, rng: random.Random) -> Written:
    """Get one step wrong, and let later steps continue from it."""
    del other
    right = calculate(problem.steps)
    numbers = list(range(len(right)))
    rng.shuffle(numbers)
    for number in numbers:
        for slip in _step_slips(rng, problem, right, number):
            try:
                results = calculate(problem.steps, {number: slip})
            except ImpossibleError:
                continue  # no later step can continue from this slip: draw another
            texts = step_texts(problem, results, style.wording)
            if texts[number] != step_texts(problem, right, style.wording)[number]:
                answer = answer_text(problem, results)
                return Written(render(texts, answer, style), "wrong_step", number + 1, answer, len(texts))
    raise ImpossibleError(f"no slip fits: {problem.prompt}")


def wrong_answer(problem: Problem, style: Style, other: Problem, rng: random.Random) -> Written:
    """Write a wrong answer below correct steps: a slip, or the result of an earlier step."""
    del other
    results = calculate(problem.steps)
    last, right = results[-1], answer_text(problem, results)
    earlier = [value for value in results[:-1] if isinstance(value, type(last)) and show(value) != right]
    if problem.steps[-1].op == "more":
        wrong = next(name for name in problem.steps[-1].names if name != right)
    elif isinstance(last, tuple):
        wrong = show(list_slips(rng, last)[0])
    elif earlier and rng.random() < 0.3:
        wrong = show(rng.choice(earlier))
    else:
        wrong = show(number_slips(rng, last)[0])
    texts = step_texts(problem, results, style.wording)
    return Written(render(texts, wrong, style), "wrong_answer", None, wrong, len(texts))


def irrelevant(problem: Problem, style: Style, other: Problem, rng: random.Random) -> Written:
    """Replace the problem's steps by one or two neighbouring steps of another problem, or insert these."""
    results = calculate(problem.steps)
    texts = step_texts(problem, results, style.wording)
    foreign = step_texts(other, calculate(other.steps), style.wording)
    count = rng.randint(1, 2)
    start = rng.randrange(len(foreign) - count + 1)
    place = rng.randrange(len(texts) - count + 1)
    replaced = count if rng.random() < 0.5 else 0
    mixed = [*texts[:place], *foreign[start : start + count], *texts[place + replaced :]]
    answer = answer_text(problem, results)
    return Written(render(mixed, answer, style), "irrelevant", place + 1, answer, len(mixed))


def shuffled(problem: Problem, style: Style, other: Problem, rng: random.Random) -> Written:
    """Reorder the steps."""
    del other
    results = calculate(problem.steps)
    texts = step_texts(problem, results, style.wording)
    mixed = list(texts)
    while mixed == texts:
        rng.shuffle(mixed)
    answer = answer_text(problem, results)
    return Written(render(mixed, answer, style), "shuffled", None, answer, len(texts))


def truncated(problem: Problem, style: Style, other: Problem, rng: random.Random) -> Written:
    """Cut the text somewhere between a third of it and the end of the last step."""
    del other
    texts = step_texts(problem, calculate(problem.steps), style.wording)
    whole = render(texts, None, style)
    cut = whole[: rng.randint(len(whole) // 3, len(whole) - 1)].rstrip()
    return Written(cut, "truncated", None, None, len(texts))


def repeated(problem: Problem, style: Style, other: Problem, rng: random.Random) -> Written:
    """Repeat one step two to four more times."""
    del other
    results = calculate(problem.steps)
    texts = step_texts(problem, results, style.wording)
    number = rng.randrange(len(texts))
    again = [*texts[:number], *[texts[number]] * rng.randint(3, 5), *texts[number + 1 :]]
    answer = answer_text(problem, results)
    return Written(render(again, answer, style), "repeated", number + 1, answer, len(again))


FLAWS: dict[str, Callable[[Problem, Style, Problem, random.Random], Written]] = {
    "wrong_step": wrong_step,
    "wrong_answer": wrong_answer,
    "irrelevant": irrelevant,
    "shuffled": shuffled,
    "truncated": truncated,
    "repeated": repeated,
}
