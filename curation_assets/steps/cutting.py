"""Strategies that cut a text into segments: each takes a region and returns its cuts.

A cut is the position in characters at which a new segment begins; the region's own start is implied. Trimming, short
segments and limits are handled by `curation_assets.steps.segmentation`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Cutter = Callable[[str, int, int], list[int]]

_STEP_HEAD = re.compile(
    r"(?:^[ \t#>*_\-]*|(?<=[.!?;:])[ \t]+)Step[ \t]*\d{1,4}"
    r"(?:[*_]*[ \t]*[:.)\uff1a\u2013\u2014-]|[*_ \t]*\r?$)",
    re.IGNORECASE | re.MULTILINE,
)
_NUMBERED = re.compile(r"^ {0,3}(?:\*\*)?\d{1,3}[.)](?:\*\*)?[ \t]+(?=\S)", re.MULTILINE)
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
# Possessive quantifiers: a run of closing signs is scanned only once, however long it is.
_SENTENCE_END = re.compile(
    r"(?<![.!?])[.!?]++[\"')\]*\u201d\u2019]*+\s++|[\u3002\uff01\uff1f]++[\u300d\u300f\u201d]*+\s*+"
)
_WORD = re.compile(r"\S+")
ABBREVIATIONS = frozenset(
    {"e.g", "i.e", "mr", "mrs", "ms", "dr", "prof", "st", "vs", "cf", "fig", "figs", "eq", "eqs", "resp"}
    | {"approx", "viz", "al", "sec", "thm", "vol", "ch", "pp"}
)
LONGEST_ABBREVIATION = 8
WIDEST_INDENT = 8


def cut_markers(text: str, start: int, end: int) -> list[int]:
    """Return cuts before `Step 3:` (also `**Step 3**`, `## Step 3`, `Step 3 -`), else before `1.`, `1)` at line starts.

    A step marker is at the start of a line or after the end of a sentence. The first marker is not a cut: the text
    before it joins the first step.
    """
    for pattern in (_STEP_HEAD, _NUMBERED):
        found = [_first_sign(text, match.start(), match.end()) for match in pattern.finditer(text, start, end)]
        if len(found) > 1:
            return found[1:]
    return []


def cut_paragraphs(text: str, start: int, end: int) -> list[int]:
    """Return cuts after blank lines."""
    return [match.end() for match in _BLANK_LINE.finditer(text, start, end)]


def cut_lines(text: str, start: int, end: int) -> list[int]:
    """Return cuts after line ends."""
    cuts: list[int] = []
    position = text.find("\n", start, end)
    while position >= 0:
        cuts.append(position + 1)
        position = text.find("\n", position + 1, end)
    return cuts


def cut_sentences(text: str, start: int, end: int) -> list[int]:
    """Return cuts after sentences, and after blank lines.

    A full stop ends a sentence if white space follows, and then no lowercase letter; but not after an abbreviation
    ("e.g."), an initial ("J. Smith") or the number that opens a line ("2. Then"). A decimal point is not followed by
    white space. `!` and `?` end a sentence whatever follows; CJK full stops need no white space.
    """
    cuts = [match.end() for match in _BLANK_LINE.finditer(text, start, end)]
    cuts += [match.end() for match in _SENTENCE_END.finditer(text, start, end) if _ends_sentence(text, match, start)]
    return sorted(set(cuts))


def window_cutter(words: int) -> Cutter:
    """Return a cutter that cuts after every `words` white-space separated words."""

    def cut(text: str, start: int, end: int) -> list[int]:
        begins = [match.start() for match in _WORD.finditer(text, start, end)]
        return begins[words::words]

    return cut


def _first_sign(text: str, start: int, end: int) -> int:
    while start < end and text[start].isspace():
        start += 1
    return start


def _ends_sentence(text: str, match: re.Match[str], start: int) -> bool:
    sign = match.group()[0]
    after = text[match.end() : match.end() + 1]
    if sign != "." or match.group().startswith(".."):
        return sign != "." or not after.islower()
    if after.islower():
        return False
    window = text[max(start, match.start() - LONGEST_ABBREVIATION) : match.start()]
    word = re.split(r"[\s(\[\"']", window)[-1]
    if word.lower() in ("no", "nos"):
        return not after.isdigit()
    if word.lower() in ABBREVIATIONS or _is_initial(word):
        return False
    return not (word.isdigit() and _opens_line(text, match.start() - len(word), start))


def _is_initial(word: str) -> bool:
    last = word.rsplit(".", maxsplit=1)[-1]
    return len(last) == 1 and last.isupper()


def _opens_line(text: str, position: int, start: int) -> bool:
    """Return whether only a few blanks separate the position from the start of its line."""
    first = max(start, position - WIDEST_INDENT)
    before = text[first:position].rstrip(" \t")
    return before.endswith("\n") or (not before and first == start)
