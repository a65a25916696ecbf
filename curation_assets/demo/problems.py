"""The problem families: each draws one problem, with its prompt and the plan that solves it, from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable

from curation_assets.demo.plans import ImpossibleError, Operand, Problem, Ref, Step, apply, calculate

_NAMES = ("Anna", "Ben", "Carl", "Dina", "Emma", "Finn", "Gina", "Hugo", "Iris", "Jan", "Lea", "Tom")
_ITEMS = ("apples", "books", "cards", "coins", "eggs", "marbles", "pens", "shells", "stamps", "stickers")
_PACKS = ("bags", "boxes", "jars", "packs")
_UNITS = (
    ("week", "weeks", "days", 7, 5),
    ("foot", "feet", "inches", 12, 4),
    ("dozen", "dozen", "eggs", 12, 4),
    ("hour", "hours", "minutes", 60, 2),
    ("gallon", "gallons", "quarts", 4, 9),
    ("pair", "pairs", "socks", 2, 9),
    ("decade", "decades", "years", 10, 6),
    ("day", "days", "hours", 24, 3),
)
_VERBS = {"+": "Add", "-": "Subtract", "*": "Multiply by", "/": "Divide by"}
_CEILING = 99  # largest number in most problems
_MOST = 20  # largest number that is added or subtracted at once


def draw_length(rng: random.Random) -> int:
    """Draw the number of steps of a problem: 3 to 8, one in ten longer."""
    return rng.randint(9, 12) if rng.random() < 0.1 else rng.randint(3, 8)


def _chain_operation(rng: random.Random, value: int) -> tuple[str, int]:
    """Draw an operation that keeps a number between 1 and 99."""
    operations: list[tuple[str, int]] = []
    if value < _CEILING - 1:
        operations += [("+", rng.randint(2, min(_MOST, _CEILING - value)))] * 2
    if value > 3:
        operations += [("-", rng.randint(2, min(_MOST, value - 1)))] * 2
    factors = [factor for factor in range(2, 10) if value * factor <= _CEILING]
    divisors = [divisor for divisor in range(2, 10) if value % divisor == 0 and value > divisor]
    if factors:
        operations.append(("*", rng.choice(factors)))
    if divisors:
        operations.append(("/", rng.choice(divisors)))
    return rng.choice(operations)


def arithmetic_chain(rng: random.Random) -> Problem:
    """Draw a chain of operations on one number."""
    value = rng.randint(2, 60)
    parts = [f"Start with {value}."]
    steps: list[Step] = []
    operand: Operand = value
    for number in range(draw_length(rng)):
        op, other = _chain_operation(rng, value)
        parts.append(f"{_VERBS[op]} {other}.")
        sum_text = f"{{a}} {op} {{b}} = {{c}}"
        steps.append(Step(operand, op, other, (sum_text, f"{_VERBS[op]} {other}: {sum_text}", f"Now {sum_text}")))
        result = apply(op, value, other)
        if isinstance(result, tuple):
            raise TypeError(f"{op} gave a list")
        value, operand = result, Ref(number)
    parts.append(rng.choice(("What is the result?", "Which number do you get?")))
    return Problem("arithmetic", "arithmetic", " ".join(parts), tuple(steps))


def unit_conversion(rng: random.Random) -> Problem:
    """Draw amounts in a large unit, to be added up in a small one."""
    singular, plural, small, factor, most = rng.choice(_UNITS)
    count = rng.choices((2, 3, 4, 5), weights=(4, 5, 3, 1))[0]
    amounts = [rng.randint(1, most) for _ in range(count)]
    loose = rng.randint(2, 19) if rng.random() < 0.6 else 0
    names = [f"{amount} {singular if amount == 1 else plural}" for amount in amounts]
    listed = [*names, f"{loose} {small}"] if loose else names
    total: Operand = 0
    steps: list[Step] = []
    for index, amount in enumerate(amounts):
        product = f"{{a}} * {factor} = {{c}}"
        texts = (
            product,
            f"{names[index]} is {product} {small}",
            f"We change {names[index]}: {product} {small}",
        )
        steps.append(Step(amount, "*", factor, texts))
        if index:
            steps.append(_total_step(total, Ref(len(steps) - 1), small))
        total = Ref(len(steps) - 1)
    if loose:
        steps.append(_total_step(total, loose, small))
    question = rng.choice(("How many {} are {} in all?", "Give the number of {} in {}."))
    prompt = question.format(small, ", ".join(listed[:-1]) + " and " + listed[-1])
    return Problem("units", "measurement", prompt, tuple(steps))


def _total_step(total: Operand, other: Operand, small: str) -> Step:
    sum_text = "{a} + {b} = {c}"
    return Step(total, "+", other, (sum_text, f"Together {sum_text} {small}", f"We add up: {sum_text} {small}"))


def _holdings(
    rng: random.Random, name: str, things: tuple[str, str], length: int, offset: int
) -> tuple[str, list[Step]]:
    """Draw one person's belongings, as a clause of the prompt and the steps that count them."""
    item, pack = things
    packs, size = rng.randint(2, 6), rng.randint(2, 12)
    clause = f"{name} has {packs} {pack} of {size} {item}"
    product = "{a} * {b} = {c}"
    texts = (f"{name}: {product}", f"{name} has {product} {item}", f"In {pack} {name} has {product} {item}")
    steps = [Step(packs, "*", size, texts)]
    if length > 1:
        loose = rng.randint(2, 19)
        clause += f" and {loose} loose ones"
        text = "{a} + {b} = {c}"
        texts = (f"{name}: {text}", f"With the loose ones {name} has {text}", f"Then {name} has {text}")
        steps.append(Step(Ref(offset), "+", loose, texts))
    if length > 2:
        lost = rng.randint(2, min(_MOST, packs * size))
        clause += f", and loses {lost}"
        text = "{a} - {b} = {c}"
        texts = (f"{name}: {text}", f"After the loss {name} has {text}", f"Then {name} keeps {text}")
        steps.append(Step(Ref(offset + 1), "-", lost, texts))
    return clause + ".", steps


def comparison(rng: random.Random) -> Problem:
    """Draw the belongings of two people: who has more, or how many more?"""
    while True:
        first, second = rng.sample(_NAMES, 2)
        things = (rng.choice(_ITEMS), rng.choice(_PACKS))
        length = rng.randint(1, 3)
        clause, steps = _holdings(rng, first, things, length, 0)
        other_clause, other_steps = _holdings(rng, second, things, length, length)
        steps += other_steps
        totals = (Ref(length - 1), Ref(2 * length - 1))
        if rng.random() < 0.5:
            question = "Who has more?"
            ends = "{hi} > {lo}, so {name} has more"
            texts = (ends, f"Compare: {ends}", f"We see {ends}")
            steps.append(Step(totals[0], "more", totals[1], texts, names=(first, second)))
        else:
            question = "By how many do they differ?"
            text = "{hi} - {lo} = {c}"
            steps.append(
                Step(
                    totals[0],
                    "gap",
                    totals[1],
                    (f"Gap: {text}", f"The gap is {text}", f"They differ by {text}"),
                )
            )
        try:
            calculate(steps)
        except ImpossibleError:
            continue  # a tie has no answer
        return Problem("comparison", "comparison", f"{clause} {other_clause} {question}", tuple(steps))


def word_problem(rng: random.Random) -> Problem:
    """Draw a short story in which someone's belongings grow and shrink."""
    name, item = rng.choice(_NAMES), rng.choice(_ITEMS)
    value = rng.randint(5, 40)
    parts = [f"{name} has {value} {item}."]
    steps: list[Step] = []
    holding: Operand = value
    length = draw_length(rng)
    while len(steps) < length:
        kind = rng.choice(("buys", "finds", "gives"))
        if kind == "buys" and len(steps) + 2 <= length:
            pack, packs, size = rng.choice(_PACKS), rng.randint(2, 5), rng.randint(2, 9)
            if value + packs * size > _CEILING:
                continue
            parts.append(f"{name} buys {packs} {pack} of {size}.")
            text = "{a} * {b} = {c}"
            texts = (f"new {item}: {text}", f"{packs} {pack} hold {text} {item}", f"The {pack} hold {text}")
            steps.append(Step(packs, "*", size, texts))
            change: Operand = Ref(len(steps) - 1)
            value, op = value + packs * size, "+"
        elif kind == "finds" and value < _CEILING - 1:
            amount = rng.randint(2, min(_MOST, _CEILING - value))
            parts.append(f"{name} finds {amount} more.")
            change, value, op = amount, value + amount, "+"
        elif kind == "gives" and value > 5:
            amount = rng.randint(2, min(_MOST, value - 2))
            parts.append(f"{name} gives away {amount}.")
            change, value, op = amount, value - amount, "-"
        else:
            continue
        text = f"{{a}} {op} {{b}} = {{c}}"
        texts = (f"{item}: {text}", f"{name} now has {text} {item}", f"That makes {text} {item}")
        steps.append(Step(holding, op, change, texts))
        holding = Ref(len(steps) - 1)
    parts.append(f"How many {item} does {name} have now?")
    return Problem("story", "word problems", " ".join(parts), tuple(steps))


_LIST_TASKS: dict[str, tuple[str, str, tuple[str, str, str]]] = {
    "sum": (
        "Add up {}.",
        "+",
        ("{a} + {b} = {c}", "Add {b}: {a} + {b} = {c}", "The sum so far is {a} + {b} = {c}"),
    ),
    "largest": (
        "Which is the largest of {}?",
        "max",
        ("max of {a} and {b} is {c}", "The larger of {a} and {b} is {c}", "Between {a} and {b} we keep {c}"),
    ),
    "smallest": (
        "Which is the smallest of {}?",
        "min",
        ("min of {a} and {b} is {c}", "The smaller of {a} and {b} is {c}", "From {a} and {b} we take {c}"),
    ),
    "sort": (
        "Sort {} in rising order.",
        "insert",
        ("insert {b} into {a}: {c}", "Put {b} in its place: {c}", "With {b} the list is {c}"),
    ),
}


def number_list(rng: random.Random) -> Problem:
    """Draw a list of numbers to add up, to search or to sort."""
    prompt, op, texts = _LIST_TASKS[rng.choice(tuple(_LIST_TASKS))]
    length = min(draw_length(rng), 5 if op == "insert" else 12)
    top = _MOST + 1 if op == "+" else _CEILING
    numbers = rng.sample(range(1, top), length + 1)
    first: Operand = (numbers[0],) if op == "insert" else numbers[0]
    steps = [Step(Ref(i - 1) if i else first, op, number, texts) for i, number in enumerate(numbers[1:])]
    return Problem("lists", "lists", prompt.format(", ".join(map(str, numbers))), tuple(steps))


FAMILIES: tuple[Callable[[random.Random], Problem], ...] = (
    arithmetic_chain,
    unit_conversion,
    comparison,
    word_problem,
    number_list,
)
