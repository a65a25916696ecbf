"""Taking many rows of one shape apart at once, as `curation_assets.corpus.formats.Parser` takes one.

How that is done is not written down a second time: a made-up row of the shape, whose every value can be told
from all others, is parsed as any row is, and where its values come out is the recipe. Two further made-up rows, and
one more for each value that is true or false, are the proof; a shape for which it fails has no recipe, and its
rows are parsed one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple

import orjson

from curation_assets.corpus.drafts import Draft, Refused, Turn
from curation_assets.corpus.fields import Row, optional_text, to_json
from curation_assets.corpus.formats import Parser
from curation_assets.corpus.shapes import BOOLEAN, FRACTION, INTEGER, NO_ITEMS, Shape, Shapes, Text, Turns

MOST_RECIPES = 512
"""Shapes that are looked into, for one file: rows of further ones are parsed one by one."""

_LONG = "x" * 250


class Slot(NamedTuple):
    """Where a value lies in a row: a field, or the text of a turn of a conversation in it."""

    name: str
    turn: int = -1
    key: str = ""

    def of(self, row: Row) -> Any:
        """The value."""
        value: Any = row[self.name]
        return value if self.turn < 0 else value[self.turn][self.key]

    def column(self, rows: Sequence[Row]) -> list[Any]:
        """The value of each row."""
        name, turn, key = self
        if turn < 0:
            return [row[name] for row in rows]
        return [row[name][turn][key] for row in rows]  # type: ignore[index]


class Put(NamedTuple):
    """A value as it comes out: written out if it is `number`, verbatim if not."""

    slot: Slot
    number: bool

    def column(self, rows: Sequence[Row]) -> list[Any]:
        """The value of each row as it comes out."""
        found = self.slot.column(rows)
        return [optional_text(value, self.slot.name) for value in found] if self.number else found


Pieces = tuple[str | Put, ...]
"""A text out of fixed words and values; one value alone is that value."""


@dataclass(frozen=True)
class Recipe:
    """How one candidate comes out of every row of a shape; `left`: fields that stay in `extra` beside `label`."""

    turns: tuple[tuple[str, Pieces], ...]
    response: Pieces
    answer: Pieces | None
    source: Pieces | None
    domain: Pieces | None
    generator: Pieces | None
    correct: Slot | bool | None
    reward: Slot | float | None
    left: tuple[str, ...]
    label: tuple[tuple[str, str], ...]

    def turns_of(self, rows: Sequence[Row]) -> list[tuple[Turn, ...]]:
        """The prompt's turns of each row."""
        columns = [map(Turn, repeat(role), texts(pieces, rows)) for role, pieces in self.turns]
        return list(zip(*columns, strict=True)) if columns else [()] * len(rows)

    def extras(self, rows: Sequence[Row]) -> list[str]:
        """`extra` of each row.

        Raises:
            Refused: one of them is nested too deeply.
        """
        if not self.left:
            return [to_json(dict(self.label))] * len(rows)
        left, label = self.left, dict(self.label)
        return [to_json({name: row[name] for name in left} | label) for row in rows]

    def drafts(self, rows: Sequence[Row]) -> list[Draft]:
        """The candidate of each row.

        Raises:
            Refused: see `extras`.
        """
        return [
            Draft(turns, response, answer, None, source, domain, generator, correct, reward, (), extra)
            for turns, response, answer, source, domain, generator, correct, reward, extra in zip(
                self.turns_of(rows),
                texts(self.response, rows),
                optional(self.answer, rows),
                optional(self.source, rows),
                optional(self.domain, rows),
                optional(self.generator, rows),
                values(self.correct, rows),
                values(self.reward, rows),
                self.extras(rows),
                strict=True,
            )
        ]


def texts(pieces: Pieces, rows: Sequence[Row]) -> list[str]:
    """The text of each row."""
    if len(pieces) == 1:
        (only,) = pieces
        return [only] * len(rows) if isinstance(only, str) else only.column(rows)
    columns = (repeat(piece) if isinstance(piece, str) else piece.column(rows) for piece in pieces)
    return ["".join(parts) for _, *parts in zip(rows, *columns, strict=False)]


def optional(pieces: Pieces | None, rows: Sequence[Row]) -> list[str] | list[None]:
    """The text of each row, if the shape has any."""
    return [None] * len(rows) if pieces is None else texts(pieces, rows)


def values(spec: Slot | bool | float | None, rows: Sequence[Row]) -> list[Any]:
    """The verdict or the number of each row."""
    return spec.column(rows) if isinstance(spec, Slot) else [spec] * len(rows)


class Recipes:
    """The recipes of one file's shapes, found when they are first asked for."""

    def __init__(self, parser: Parser, shapes: Shapes) -> None:
        self._parser = parser
        self._shapes = shapes
        self._known: dict[Shape, tuple[Recipe, ...]] = {}

    def of(self, shape: Shape) -> tuple[Recipe, ...]:
        """A recipe a candidate; none if rows of the shape must be parsed one by one."""
        if shape not in self._known:
            if len(self._known) == MOST_RECIPES:
                return ()
            self._known[shape] = self._find(shape)
        return self._known[shape]

    def _find(self, shape: Shape) -> tuple[Recipe, ...]:
        counted = self._shapes.counted(shape.names)
        made_up = _MadeUp(shape, dict(zip(counted, shape.classes, strict=True)), 1)
        drafts = self._parse(made_up.row)
        truths = [slot for slot, value in made_up.slots.items() if isinstance(value, bool)]
        flipped = [made_up.row | {slot.name: True} for slot in truths]
        verdicts = [[draft.correct for draft in self._parse(row)] for row in flipped]
        if any(len(own) != len(drafts) for own in verdicts):
            return ()
        found: list[Recipe] = []
        for number, draft in enumerate(drafts):
            turning = [slot for slot, own in zip(truths, verdicts, strict=True) if own[number] != draft.correct]
            recipe = _recipe(draft, made_up, turning)
            if recipe is None:
                return ()
            found.append(recipe)
        other = _MadeUp(shape, dict(zip(counted, shape.classes, strict=True)), 2)
        for row in (made_up.row, other.row, *flipped):
            if [recipe.drafts([row])[0] for recipe in found] != self._parse(row):
                return ()
        return tuple(found)

    def _parse(self, row: Row) -> list[Draft]:
        """The row's candidates; none if any of them is refused."""
        try:
            drafts = self._parser.parse(row)
        except Refused:
            return []
        return [draft for draft in drafts if isinstance(draft, Draft)] if _all_drafts(drafts) else []


def _all_drafts(drafts: Sequence[Draft | Refused]) -> bool:
    return all(isinstance(draft, Draft) for draft in drafts)


class _MadeUp:
    """A row of a shape whose every value that counts, but for those true or false, can be told from all others.

    Attributes:
        row: the row.
        slots: by place the values that count.
    """

    def __init__(self, shape: Shape, classes: dict[str, object], salt: int) -> None:
        self._salt = salt
        self.slots: dict[Slot, object] = {}
        self.row: Row = {}
        for name in shape.names:
            self.row[name] = self._value(name, classes[name]) if name in classes else [f"{name} {salt}"]

    def _value(self, name: str, kind: object) -> object:
        if isinstance(kind, Turns):
            turns = []
            for number, (role, text) in enumerate(kind.turns):
                content = self._put(Slot(name, number, kind.text_key), text)
                turns.append({kind.role_key: role, kind.text_key: content})
            return turns
        return self._put(Slot(name), kind)

    def _put(self, slot: Slot, kind: object) -> object:
        number = len(self.slots)
        value: object = None
        if isinstance(kind, Text):
            value = "" if kind.blank else f"\ue000{self._salt}-{number}{'' if kind.short else _LONG}\ue001"
            value = f" \t{value}\n " if kind.padded else value
        elif kind == BOOLEAN:
            value = False
        elif kind == INTEGER:
            value = 1_000_000 * self._salt + number
        elif kind == FRACTION:
            value = 1_000_000 * self._salt + number + 0.25
        elif kind == NO_ITEMS:
            value = []
        self.slots[slot] = value
        return value


def _recipe(draft: Draft, made_up: _MadeUp, turning: Sequence[Slot]) -> Recipe | None:
    """Where everything in a draft of a made-up row came from; None where that cannot be told.

    `turning` are the values, true or false, of which it says that they turn `correct`.
    """
    extra: Row = orjson.loads(draft.extra)
    # What is neither a field of the row nor a text does not come from a format.
    label = {name: value for name, value in extra.items() if name not in made_up.row}
    left = tuple(name for name in extra if name not in label)
    if any(extra[name] != made_up.row[name] for name in left) or not all(isinstance(v, str) for v in label.values()):
        return None
    rewards = [slot for slot, value in made_up.slots.items() if _is_number(value) and value == draft.reward]
    if len(turning) > 1 or len(rewards) > 1 or draft.steps is not None or draft.images:
        return None

    def optional_pieces(text: str | None) -> Pieces | None:
        return None if text is None else made_of(text, made_up.slots)

    return Recipe(
        turns=tuple((turn.role, made_of(turn.content, made_up.slots)) for turn in draft.turns),
        response=made_of(draft.response, made_up.slots),
        answer=optional_pieces(draft.answer),
        source=optional_pieces(draft.source),
        domain=optional_pieces(draft.domain),
        generator=optional_pieces(draft.generator),
        correct=turning[0] if turning else draft.correct,
        reward=rewards[0] if rewards else draft.reward,
        left=left,
        label=tuple((name, str(value)) for name, value in label.items()),
    )


def made_of(text: str, slots: dict[Slot, object]) -> Pieces:
    """The text as pieces: every value that stands in it becomes its place."""
    places = dict(_written(slots))
    if text in places:
        return (places[text],)
    if not places:
        return (text,)
    marks = re.split("(" + "|".join(map(re.escape, sorted(places, key=len, reverse=True))) + ")", text)
    return tuple(places.get(piece, piece) for piece in marks if piece) or (text,)


def _written(slots: dict[Slot, object]) -> Iterator[tuple[str, Put]]:
    for slot, value in slots.items():
        if isinstance(value, str) and value:
            yield value, Put(slot, number=False)
        elif _is_number(value):
            yield str(optional_text(value, slot.name)), Put(slot, number=True)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
