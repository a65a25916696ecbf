"""Text that came from outside, made safe to show: in a terminal, and in Markdown and HTML."""

from __future__ import annotations

import unicodedata

ENTITIES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("`", "&#96;"), ("\\", "&#92;"))
MARKDOWN_CHARACTERS = "[]*_~$"

LONGEST_CELL = 1000
"""Characters of a cell: a row may name a source of megabytes, and a table of them is kept with every run."""

# Marks that make what follows show in another order than it was written in.
REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def harmless(text: object) -> str:
    """Text from outside as a terminal may print it: control characters are shown as escapes, not obeyed."""
    lines = str(text).replace("\r\n", "\n")
    return "".join(_shown(c) for c in lines)


def _shown(character: str) -> str:
    if character in "\n\t":
        return character
    if unicodedata.category(character) in {"Cc", "Cs"} or character in REORDERING:
        return character.encode("unicode_escape").decode("ascii")
    return character


def shortened(text: str, longest: int) -> str:
    """The text, or its beginning and a sign that there is more."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def escape_cell(value: object) -> str:
    """A value as one line that Markdown and HTML show as it is; floats to four digits, None as a dash."""
    if isinstance(value, float):
        value = f"{value:.4g}"
    text = "–" if value is None else harmless(shortened(str(value), LONGEST_CELL))
    for character, entity in ENTITIES:
        text = text.replace(character, entity)
    for character in MARKDOWN_CHARACTERS:
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())
