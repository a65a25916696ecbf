"""Text for people: untrusted text made safe for a terminal, Markdown and HTML; durations and sizes."""

from __future__ import annotations

import unicodedata

ENTITIES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("`", "&#96;"), ("\\", "&#92;"))
MARKDOWN_CHARACTERS = "[]*_~$"

LONGEST_CELL = 1000
"""Maximum characters in a cell: a source name may have megabytes, and tables are stored with every run."""

# Characters that change the display order of the text after them (bidirectional controls).
REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def harmless(text: object) -> str:
    """Return text that is safe to print in a terminal: control characters are shown as escapes."""
    lines = str(text).replace("\r\n", "\n")
    return "".join(_shown(c) for c in lines)


def _shown(character: str) -> str:
    if character in "\n\t":
        return character
    if unicodedata.category(character) in {"Cc", "Cs"} or character in REORDERING:
        return character.encode("unicode_escape").decode("ascii")
    return character


def shortened(text: str, longest: int) -> str:
    """Return the text, cut to `longest` characters with an ellipsis if it is longer."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def escape_cell(value: object) -> str:
    """Return a value as one line that Markdown and HTML show literally; floats get four digits, None becomes a dash."""
    if isinstance(value, float):
        value = f"{value:.4g}"
    text = "–" if value is None else harmless(shortened(str(value), LONGEST_CELL))
    for character, entity in ENTITIES:
        text = text.replace(character, entity)
    for character in MARKDOWN_CHARACTERS:
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def duration(seconds: float) -> str:
    """Return a duration as text, with two units at most."""
    if 0 < seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for name, length, below, below_name in (("d", 86400, 3600, "h"), ("h", 3600, 60, "min"), ("min", 60, 1, "s")):
        if whole >= length:
            rest = whole % length // below
            return f"{whole // length} {name} {rest} {below_name}" if rest else f"{whole // length} {name}"
    return f"{whole} s"


def size_text(size: float) -> str:
    """Return a size in bytes as text."""
    for name in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if name == "B" else f"{size:.1f} {name}"
        size /= 1024
    return f"{size:.1f} TiB"
