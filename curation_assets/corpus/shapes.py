"""Shapes of rows: what decides how a row is taken apart, and rows that share it.

Reading a row by itself (`curation_assets.corpus.formats.Parser`) looks at its field names, and at some values only
by their class: text or null, blank or not, short enough for an answer, the roles of a conversation. Rows of
one shape are taken apart in the same way, so that this need be found out only once (`curation_assets.corpus.recipes`).
A value whose class does not say enough (an image, several responses, a list of steps) has none, and its row
is read by itself.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple, cast

from curation_assets.config.corpus_settings import Columns
from curation_assets.corpus.assemble import SHARED_NAMES, SHORT_ANSWER_CHARS, claims
from curation_assets.corpus.fields import Row
from curation_assets.corpus.formats.instructions import RESPONSE_NAMES
from curation_assets.corpus.row_parts import PROMPT_NAMES, SYSTEM_NAMES

LONGEST_CONVERSATION = 16
"""Turns: longer conversations are read by themselves, so that there are not too many shapes."""

LOOKED_AT = frozenset(
    {
        *PROMPT_NAMES,
        *SYSTEM_NAMES,
        *RESPONSE_NAMES,
        *(name for names in SHARED_NAMES.values() for name in names),
        *("history", "messages", "conversations", "conversation", "trajectory", "chosen", "rejected"),
        *("reasoning", "distilled_answer_string"),
    }
)
"""Fields whose values some format looks at, whatever is mapped; of others only the name counts."""

_ANSWERS = frozenset(SHARED_NAMES["answer"])
_TURN_KEYS = {frozenset({"role", "content"}): ("role", "content"), frozenset({"from", "value"}): ("from", "value")}


NULL, BOOLEAN, INTEGER, FRACTION, NO_ITEMS = "null", "boolean", "integer", "fraction", "no items"
"""Classes of values that say all by their type."""

_BY_TYPE: dict[type, str] = {type(None): NULL, bool: BOOLEAN, int: INTEGER, float: FRACTION}


class Text(NamedTuple):
    """The class of a text: `blank` means that it is empty, `padded` that white space stands at an end of it.

    `short` counts where an answer may stand: whether it is one line that is short enough for one.
    """

    blank: bool
    padded: bool
    short: bool


class Turns(NamedTuple):
    """The class of a conversation: how its turns are written, and of each the role and the class of its text."""

    role_key: str
    text_key: str
    turns: tuple[tuple[str, Text], ...]


class Shape(NamedTuple):
    """All field names in order, and the classes of those values that count."""

    names: tuple[str, ...]
    classes: tuple[Hashable, ...]


class Shapes:
    """Sorts rows by shape.

    Args:
        columns: mapped columns, whose fields count too.
    """

    def __init__(self, columns: Columns) -> None:
        self._heads = frozenset(path.split(".")[0] for path in claims(columns)) | claims(columns)
        self._verdicts = frozenset(_paths(columns.correct))
        self._counted: dict[tuple[str, ...], tuple[str, ...]] = {}

    def counted(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the fields whose values count."""
        if names not in self._counted:
            self._counted[names] = tuple(name for name in names if name in LOOKED_AT or name in self._heads)
        return self._counted[names]

    def sort(self, rows: Sequence[Row]) -> tuple[dict[Shape, list[int]], list[int]]:
        """Positions of the rows of each shape, and of those that have none."""
        by_names: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for position, names in enumerate(map(tuple, rows)):
            by_names[names].append(position)
        shaped: defaultdict[Shape, list[int]] = defaultdict(list)
        others: list[int] = []
        for names, positions in by_names.items():
            of_names = list(rows) if len(by_names) == 1 else [rows[position] for position in positions]
            columns = [self._classes(name, [row[name] for row in of_names]) for name in self.counted(names)]
            if not columns:
                others += positions
                continue
            by_classes: defaultdict[tuple[Hashable, ...], list[int]] = defaultdict(list)
            if all(len(classes) == 1 for classes in columns):
                by_classes[tuple(classes[0] for classes in columns)] = positions
            else:
                full = (classes * len(positions) if len(classes) == 1 else classes for classes in columns)
                for position, classes_of_row in zip(positions, zip(*full, strict=True), strict=True):
                    by_classes[classes_of_row].append(position)
            for classes_of_rows, found in by_classes.items():
                if None in classes_of_rows:
                    others += found
                else:
                    shaped[Shape(names, classes_of_rows)] += found
        return dict(shaped), sorted(others)

    def _classes(self, name: str, values: list[object]) -> list[Hashable]:
        """The class of each value of a field; one alone if it is that of all."""
        if name in self._verdicts:
            # 1 and "true" mean true where a verdict is mapped, 2 and "yes" nothing: the value itself decides.
            return [value_class(value) if isinstance(value, bool) or value is None else None for value in values]
        answer = name in _ANSWERS
        types = set(map(type, values))
        if types == {str} and not answer:
            same = _class_of_texts(cast(list[str], values))
            if same is not None:
                return [same]
        if types <= {bool} or types <= {type(None)}:
            return [value_class(values[0])]
        return [value_class(value, answer) for value in values]


def _class_of_texts(values: Sequence[str]) -> Text | None:
    """The class of all these texts, if it is one."""
    stripped = list(map(str.strip, values))
    # Short ways over many values: blank is what is empty when stripped, padded what gets shorter by it.
    if not all(stripped) or any("\0" in value for value in values) or sum(map(len, stripped)) != sum(map(len, values)):
        return None
    return Text(blank=False, padded=False, short=True)


def value_class(value: object, answer: bool = False) -> Hashable:
    """The class of a value, of which `answer` says that it may be an answer; None if it must be looked at by itself."""
    if isinstance(value, str):
        return _text_class(value, answer)
    if isinstance(value, list):
        return _turns_class(value) if value else NO_ITEMS
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return _BY_TYPE.get(type(value))


def _text_class(value: str, answer: bool = False) -> Text | None:
    stripped = value.strip()
    if not stripped:
        return None if value else Text(blank=True, padded=False, short=True)
    if "\0" in value:
        return None
    short = not answer or (len(stripped) <= SHORT_ANSWER_CHARS and "\n" not in stripped)
    return Text(blank=False, padded=len(stripped) != len(value), short=short)


def _turns_class(value: list[object]) -> Turns | None:
    if len(value) > LONGEST_CONVERSATION:
        return None
    style: tuple[str, str] | None = None
    turns: list[tuple[str, Text]] = []
    for item in value:
        if not isinstance(item, dict) or len(item) != 2:
            return None
        keys = _TURN_KEYS.get(frozenset(item))
        if keys is None or keys != (style or keys):
            return None
        style = keys
        role, content = item[keys[0]], item[keys[1]]
        found = _text_class(content) if isinstance(role, str) and isinstance(content, str) else None
        if found is None:
            return None
        turns.append((role, found))
    return None if style is None else Turns(*style, tuple(turns))


def _paths(spec: str | list[str | bool | None] | None) -> list[str]:
    return [path for path in (spec if isinstance(spec, list) else [spec]) if isinstance(path, str)]
