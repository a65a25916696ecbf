"""Read single values from a row: paths, types, and the remainder."""

from __future__ import annotations

import base64
import contextlib
import math
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Final

import orjson

from curation_assets.corpus.drafts import Refused

Row = dict[str, object]


class _Missing:
    """The type of MISSING, which differs from every value that a row can hold."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()


LONGEST_INTEGER = 20
"""Characters of the longest 64-bit integer."""


class Exact(float):
    """A number of JSON with more digits than a double or a 64-bit integer holds.

    Attributes:
        literal: the number as written.
    """

    def __new__(cls, literal: str) -> Exact:
        """Make the nearest double, and keep the literal."""
        made = super().__new__(cls, literal)
        made.literal = literal
        return made

    literal: str

    @classmethod
    def integer(cls, literal: str) -> int | Exact:
        """Return an integer of JSON."""
        value = int(literal) if len(literal) <= LONGEST_INTEGER else None
        return value if value is not None and -(2**63) <= value < 2**64 else cls(literal)

    @classmethod
    def decimal(cls, literal: str) -> float | Exact:
        """Return a number of JSON with a fraction or an exponent."""
        value = float(literal)
        return value if Decimal(repr(value)) == Decimal(literal) else cls(literal)


def lookup(row: Row, path: str) -> object:
    """Return the value at a path, or MISSING if there is none.

    A field whose name equals the whole path takes precedence over nesting; a number indexes a list.
    """
    if path in row:
        return row[path]
    value: object = row
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


def first_of(row: Row, names: Sequence[str]) -> str | None:
    """Return the field with the first of these lower-case names that has a value; `Response` counts as `response`."""
    found = next((name for name in names if row.get(name) is not None), None)
    if found is None and not "".join(row).islower():
        spelled = {field.lower(): field for field, value in row.items() if value is not None}
        found = next((spelled[name] for name in names if name in spelled), None)
    return found


def absent(value: object) -> bool:
    """Return whether a value is missing or null."""
    return value is MISSING or value is None


def text(value: object, what: str) -> str:
    """Return the value as text, verbatim.

    Raises:
        Refused: wrong_type, nul_byte.
    """
    if isinstance(value, bytes):
        # Writers without logical types store texts as bytes.
        with contextlib.suppress(UnicodeDecodeError):
            value = value.decode()
    if not isinstance(value, str):
        raise Refused("wrong_type", f"{what} must be text, not {kind(value)}. Correct the row or map another field.")
    if "\0" in value:
        raise Refused("nul_byte", f"{what} contains a NUL character. Remove it.")
    return value


def optional_text(value: object, what: str) -> str | None:
    """Return text, or None if blank, null, NaN or missing; numbers become text (integral ones without a decimal point).

    Raises:
        Refused: wrong_type, nul_byte.
    """
    if absent(value):
        return None
    if isinstance(value, Exact):
        return value.literal
    if isinstance(value, float):
        # Tables with nulls store integers as floats: 72.0 was 72.
        return None if math.isnan(value) else str(int(value) if value.is_integer() else value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text(value, what) if not isinstance(value, str) or value.strip() else None


def boolean(value: object, what: str) -> bool | None:
    """Parse a boolean, 0 or 1, "true" or "false"; null and missing become None.

    Raises:
        Refused: wrong_type.
    """
    if absent(value):
        return None
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    raise Refused("wrong_type", f"{what} must be true or false, not {kind(value)}. Map another field.")


def number(value: object, what: str) -> float | None:
    """Return a finite number; null, missing and NaN (null in many tables) become None.

    Raises:
        Refused: wrong_type.
    """
    if absent(value) or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise Refused("wrong_type", f"{what} must be a finite number, not {kind(value)}. Map another field.")


def step_list(value: object, what: str) -> tuple[str, ...] | None:
    """Return a list of texts; null, missing and lists of blank texts become None.

    Raises:
        Refused: wrong_type, nul_byte.
    """
    if absent(value):
        return None
    if not isinstance(value, list):
        raise Refused("wrong_type", f"{what} must be a list of texts, not {kind(value)}")
    steps = tuple(text(step, f"{what}[{index}]") for index, step in enumerate(value))
    return steps if any(step.strip() for step in steps) else None


def remainder(row: Row, used: Iterable[str]) -> Row:
    """Return the row without the values at the used paths, and without objects that become empty as a result."""
    left = dict(row)
    for path in used:
        if path in left:
            del left[path]
        elif "." in path:
            head, _, rest = path.partition(".")
            inner = left.get(head)
            if isinstance(inner, dict) and lookup(inner, rest) is not MISSING:
                kept = remainder(inner, [rest])
                if kept:
                    left[head] = kept
                else:
                    del left[head]
    return left


def to_json(value: object) -> str:
    """Return JSON with sorted keys and every digit of numbers; bytes become base64, values of other types text.

    Raises:
        Refused: nested_too_deep.
    """
    try:
        return orjson.dumps(value, default=_foreign, option=orjson.OPT_SORT_KEYS).decode()
    except orjson.JSONEncodeError as error:
        raise Refused("nested_too_deep", f"the row's additional fields cannot be stored: {error}") from error


def kind(value: object) -> str:
    """Return the JSON name of a value's type."""
    names: dict[type, str] = {bool: "a boolean", int: "a number", float: "a number", str: "text"}
    names |= {list: "a list", dict: "an object", type(None): "null", _Missing: "missing", Exact: "a number"}
    return names.get(type(value), type(value).__name__)


def _foreign(value: object) -> str | orjson.Fragment:
    if isinstance(value, Exact):
        return orjson.Fragment(value.literal)
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
