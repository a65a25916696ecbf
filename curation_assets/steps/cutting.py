"""Strategies that cut a text into segments: each takes a region and returns its cuts.

A cut is the position in characters at which a new segment begins; the region's own start is implied. Trimming, short
segments, code blocks and limits are handled by `curation_assets.steps.segmentation`.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable

Cutter = Callable[[str, int, int], list[int]]

# Scripts without spaces between words, in which each character counts as a word: Thai, Lao, Myanmar, Khmer, Kana, Han.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
)
# Signs belong to the word before them, so that no window begins with a comma.
_WORD = re.compile(rf"[{_UNSPACED}](?:(?![{_UNSPACED}\w])\S)*+|(?:(?![{_UNSPACED}])\S)++")

_STEP_HEAD = re.compile(
    r"(?:^[ \t#>*_\-]*|(?<=[.!?;:])[ \t]+)Step(?:[ \t]*\d{1,4}|[ \t]+"
    r"(?:one|two|three|four|five|six|seven|eight|nine|ten))"
    r"(?:[*_]*[ \t]*[:.)\uff1a\u2013\u2014-]|[*_ \t]*\r?$)",
    re.IGNORECASE | re.MULTILINE,
)
_NUMERAL = "[0-9\uff10-\uff19\u4e00\u4e8c\u4e09\u56db\u4e94\u516d\u4e03\u516b\u4e5d\u5341]{1,3}"
# Chinese, Japanese, Korean, Hindi and Arabic: 第一步, 步骤1, ステップ1, 手順1, 1단계, 단계 1, चरण 1, الخطوة 1.
_STEP_HEAD_ABROAD = re.compile(
    rf"(?:^[ \t#>*_\-]*|(?<=[.!?;:\u3002\uff01\uff1f\uff1b\uff1a\u0964\u061f])[ \t]*)"
    rf"(?:第[ \t]*{_NUMERAL}[ \t]*步|(?:步骤|步驟|ステップ|手順)[ \t]*{_NUMERAL}|\d{{1,3}}[ \t]*단계"
    r"|(?:단계|चरण|الخطوة)[ \t]*\d{1,3})(?!\d)[*_]*",
    re.MULTILINE,
)
STEP_WORDS_ABROAD = ("步", "ステップ", "手順", "단계", "चरण", "الخطوة")
_FENCE = re.compile(r"^[ \t]{0,3}(```+|~~~+)[^\n]*$", re.MULTILINE)
_NUMBERED = re.compile(r"^ {0,3}(?:\*\*)?\d{1,3}[.)](?:\*\*)?[ \t]+(?=\S)", re.MULTILINE)
_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
# Possessive quantifiers: a run of closing signs is scanned only once, however long it is.
SENTENCE_END = re.compile(
    r"(?<![.!?])[.!?]++[\"')\]*\u201d\u2019]*+\s++"
    r"|[\u3002\uff01\uff1f\uff61\u0964\u0965\u061f\u06d4\u104b\u17d4]++[\u300d\u300f\u201d]*+\s*+"
)
ABBREVIATIONS = frozenset(
    {"e.g", "i.e", "mr", "mrs", "ms", "dr", "prof", "st", "vs", "cf", "fig", "figs", "eq", "eqs", "resp"}
    | {"approx", "viz", "al", "sec", "thm", "vol", "ch", "pp"}
)
LONGEST_ABBREVIATION = 8
WIDEST_INDENT = 8


def cut_markers(text: str, start: int, end: int) -> list[int]:
    """Return cuts before `Step 3:` (also `**Step 3**`, `## Step 3`, `Step 3 -`, `Step Three:`) and its like in other
    languages (`步骤3`, `第三步`), else before `1.`, `1)` at line starts. Items of nested lists are not cut.

    A step marker is at the start of a line or after the end of a sentence. The first marker is not a cut: the text
    before it joins the first step.
    """
    abroad = any(text.find(word, start, end) >= 0 for word in STEP_WORDS_ABROAD)
    for pattern in (_STEP_HEAD, *((_STEP_HEAD_ABROAD,) if abroad else ()), _NUMBERED):
        matches = list(pattern.finditer(text, start, end))
        if pattern is _NUMBERED:
            matches = _outer_items(matches)
        if len(matches) > 1:
            return [_first_sign(text, match.start(), match.end()) for match in matches[1:]]
    return []


def _outer_items(items: list[re.Match[str]]) -> list[re.Match[str]]:
    """Return the items of the outer list, which is indented least; all items if it has one only."""
    indents = [len(item[0]) - len(item[0].lstrip(" ")) for item in items]
    least = min(indents, default=0)
    outer = [item for item, indent in zip(items, indents, strict=True) if indent == least]
    return outer if len(outer) > 1 else items


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
    white space. `!` and `?` end a sentence whatever follows; full stops of other scripts (Chinese, Japanese, Hindi,
    Arabic, Burmese, Khmer) need no white space.
    """
    cuts = [match.end() for match in _BLANK_LINE.finditer(text, start, end)]
    cuts += [match.end() for match in SENTENCE_END.finditer(text, start, end) if ends_sentence(text, match, start)]
    return sorted(set(cuts))


def window_cutter(words: int) -> Cutter:
    """Return a cutter that cuts after every `words` words; see `count_words`."""

    def cut(text: str, start: int, end: int) -> list[int]:
        begins = [match.start() for match in _WORD.finditer(text, start, end)]
        return begins[words::words]

    return cut


def count_words(text: str) -> int:
    """Return the number of words: runs without white space, and single characters of scripts without spaces."""
    return len(text.split()) if text.isascii() else len(_WORD.findall(text))


def code_blocks(text: str) -> list[tuple[int, int]]:
    """Return the spans of fenced code blocks, fences included; a fence that is never closed opens none."""
    if "```" not in text and "~~~" not in text:
        return []
    blocks: list[tuple[int, int]] = []
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif fence[1].startswith(opened[1]) and not fence[0].strip().strip(fence[1][0]):
            blocks.append((opened.start(), fence.end()))
            opened = None
    return blocks


def outside_blocks(positions: list[int], blocks: list[tuple[int, int]]) -> list[int]:
    """Return the positions that are not inside one of the code blocks, which are in order; a start is not inside."""
    if not blocks or not positions:
        return positions
    before = ((position, bisect_left(blocks, position, key=_start)) for position in positions)
    return [position for position, count in before if not count or position >= blocks[count - 1][1]]


def _start(block: tuple[int, int]) -> int:
    return block[0]


def _first_sign(text: str, start: int, end: int) -> int:
    while start < end and text[start].isspace():
        start += 1
    return start


def ends_sentence(text: str, match: re.Match[str], start: int) -> bool:
    """Return whether a match of SENTENCE_END ends a sentence of the text from `start` on; see `cut_sentences`."""
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
