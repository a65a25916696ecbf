"""Text that came from outside, made safe to show in Markdown and HTML."""

from __future__ import annotations

ENTITIES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("`", "&#96;"), ("\\", "&#92;"))
MARKDOWN_CHARACTERS = "[]*_~"


def escape_cell(value: object) -> str:
    """A value as one line that Markdown and HTML show as it is; floats to four digits, None as a dash."""
    if isinstance(value, float):
        value = f"{value:.4g}"
    text = "–" if value is None else str(value)
    for character, entity in ENTITIES:
        text = text.replace(character, entity)
    for character in MARKDOWN_CHARACTERS:
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())
