"""The responses of a slice of rows as one array, one byte for a character, so that all rows are searched at once.

ASCII stands for itself. Of other characters the rules need to know a few signs (`†`, `。`) and otherwise only what
kind a character is (a letter, a digit, white space), so each becomes a code of its sign or kind. Positions are
indices into the array; since one byte is one character, they are a row's own offsets but for where the row starts.

Runs of one kind of sign are walked one sign at a time, in all rows together. Rows in which that would take longer
than LONGEST_RUN are marked `odd` and cut one by one (`curation_assets.steps.one_response`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Codes = NDArray[np.uint8]

LONGEST_RUN = 200

_UNKNOWN = 0
_SPACE = 0x1C  # white space that no rule names
_KINDS = 0x80  # plus the bits of _kind
_SIGNS = {
    sign: 0xA0 + number for number, sign in enumerate("†\uff1a\u2013\u2014\u3002\uff01\uff1f\u300d\u300f\u201d\u2019")
}
# Letters that ignoring case makes equal to ASCII's: what `re.IGNORECASE` takes them for, and their codes.
_FOLDED_LETTERS = {"\u0130": "i", "\u0131": "i", "\u017f": "s"}
_LETTERS = {letter: 0xB0 + number for number, letter in enumerate(_FOLDED_LETTERS)}
BARRIER = 0  # between rows; white space, and in no rule
_PADDING = 64  # so that no look around a position leaves the array


def _kind(character: str) -> int:
    return (
        character.isalnum()
        | character.islower() << 1
        | character.isupper() << 2
        | character.isdigit() << 3
        | character.isdecimal() << 4
    )


def _code(character: str) -> int:
    if character.isspace():
        return _SPACE
    return (_SIGNS | _LETTERS).get(character, _KINDS | _kind(character))


def _of_kind(bit: int) -> Bools:
    kinds = {code: _kind(chr(code)) for code in range(0x80)}
    kinds |= {code: code & 0x1F for code in range(0x80, 0xA0)}
    kinds |= {code: _kind(letter) for letter, code in _LETTERS.items()}
    return np.array([kinds.get(code, 0) >> bit & 1 for code in range(0x100)], np.bool_)


def signs(characters: str) -> Bools:
    """A table of all codes [256]: whether a code is one of these characters, each ASCII or known by its sign."""
    table = np.zeros(256, np.bool_)
    table[[ord(sign) if sign.isascii() else _SIGNS[sign] for sign in characters]] = True
    return table


ALNUM = _of_kind(0)
LOWER = _of_kind(1)
UPPER = _of_kind(2)
DIGIT = _of_kind(3)
DECIMAL = _of_kind(4)
LETTER = signs("".join(map(chr, [*range(ord("A"), ord("Z") + 1), *range(ord("a"), ord("z") + 1)])))
WORD = ALNUM | signs("_")
SPACE = signs("\t\n\v\f\r\x1c\x1d\x1e\x1f ")
SPACE[BARRIER] = True
BLANK = signs(" \t")

# By code point; filled as characters are met, for most of Unicode never is. Of the signs below the blank only white
# space keeps its code, so that white space is what is not above the blank.
_CODES = np.full(0x110000, _UNKNOWN, np.uint8)
_CODES[:0x80] = np.where(SPACE[:0x80] | (np.arange(0x80) > 0x20), np.arange(0x80), _KINDS)
_CODES[0] = _KINDS


def _encoded(text: str) -> Codes:
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    codes: Codes = _CODES[points]
    if not codes.all():
        for point in np.unique(points[codes == _UNKNOWN]).tolist():
            _CODES[point] = _code(chr(point))
        codes = _CODES[points]
    return codes


class SliceText:
    """Responses as codes [characters], a barrier before each, after the last and around all of them.

    `starts` and `ends` are the rows' bounds [rows], without barriers; `newlines` is where line feeds stand.
    """

    def __init__(self, responses: Sequence[str]) -> None:
        together = "\n".join(responses)
        self.ascii = together.isascii()
        encoded = np.frombuffer(together.encode("ascii"), np.uint8) if self.ascii else _encoded(together)
        self.codes: Codes = np.full(len(encoded) + 2 * _PADDING, BARRIER, np.uint8)
        self.codes[_PADDING : _PADDING + len(encoded)] = encoded
        low = np.flatnonzero(encoded < 0x20) + _PADDING
        self.codes[low] = _CODES[self.codes[low]]
        lengths = np.fromiter(map(len, responses), np.int64, len(responses))
        self.ends: Ints = np.cumsum(lengths + 1) - 1 + _PADDING
        self.starts: Ints = self.ends - lengths
        self.codes[self.ends] = BARRIER
        self.newlines: Ints = low[self.codes[low] == ord("\n")]
        # A word that is in no row, so that there is a next one behind every place.
        self.codes[-2] = _KINDS
        self.odd: Bools = np.zeros(len(responses), np.bool_)

    @cached_property
    def folded(self) -> Codes:
        """The codes with small letters for what equals them without case; of other signs none becomes a letter."""
        folded: Codes = self.codes | np.uint8(0x20)
        if not self.ascii:
            for letter, code in _LETTERS.items():
                folded[self.codes == code] = ord(_FOLDED_LETTERS[letter])
        return folded

    @cached_property
    def blank_lines(self) -> tuple[Ints, Ints]:
        r"""Where `\n[ \t\r]*\n` begins, overlapping ones included, and where its second line feed stands."""
        behind = self.newlines + 1
        opens = np.flatnonzero(signs("\n\r\t ")[self.codes[behind]])
        after = self.after_run(behind[opens], signs(" \t\r"))
        blank = self.codes[after] == ord("\n")
        return self.newlines[opens[blank]], after[blank]

    @cached_property
    def words(self) -> tuple[Ints, Ints]:
        """Where words, that is runs of anything but white space, begin and end; the last one is in no row."""
        space = self.codes <= 0x20
        edges = np.flatnonzero(space[1:] != space[:-1])
        return edges[::2] + 1, edges[1::2] + 1

    @staticmethod
    def where(mask: Bools) -> Ints:
        """The positions that are true."""
        return np.flatnonzero(mask)

    def rows_of(self, positions: Ints) -> Ints:
        """The rows that positions lie in."""
        return np.searchsorted(self.starts, positions, "right") - 1

    def doubt(self, positions: Ints) -> None:
        """Leave the rows of these positions to be cut one by one."""
        self.odd[self.rows_of(positions)] = True

    def words_before(self, positions: Ints) -> Ints:
        """How many words of the slice begin before each position."""
        return np.searchsorted(self.words[0], positions)

    def count_words(self, starts: Ints, ends: Ints) -> Ints:
        """Words of spans that begin and end with one; a span that begins inside a word holds a part of it."""
        first = self.words_before(starts)
        counts: Ints = self.words_before(ends) - first + (self.words[0][first] != starts)
        return counts

    def trimmed(self, starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
        """The spans without white space at their ends; where there is nothing else, the start is not below the end."""
        begins, stops = self.words
        first = np.where(SPACE[self.codes[starts]], begins[self.words_before(starts)], starts)
        last = np.where(SPACE[self.codes[ends - 1]], stops[self.words_before(ends) - 1], ends)
        return first, np.where(first < ends, last, first)

    def after_run(self, positions: Ints, kind: Bools) -> Ints:
        """The positions moved forward over signs of a kind."""
        return self._over_run(positions, kind, 1, 0)

    def before_run(self, positions: Ints, kind: Bools) -> Ints:
        """The positions moved back over signs of a kind that stand before them."""
        return self._over_run(positions, kind, -1, -1)

    def _over_run(self, positions: Ints, kind: Bools, step: int, look: int) -> Ints:
        moved = positions.copy()
        live = np.flatnonzero(kind[self.codes[moved + look]])
        for _ in range(LONGEST_RUN):
            if not live.size:
                return moved
            moved[live] += step
            live = live[kind[self.codes[moved[live] + look]]]
        self.doubt(moved[live])
        return moved

    def spelled(self, positions: Ints, text: str, fold: bool = False) -> Ints:
        """Those of the positions at which a text of ASCII stands; with `fold` in whatever case, the text in small."""
        codes = self.folded if fold else self.codes
        for offset, sign in enumerate(text):
            positions = positions[codes[positions + offset] == ord(sign)]
        return positions


def last_within(positions: Ints, starts: Ints, ends: Ints) -> Ints:
    """For each span the index of the last of the sorted positions inside it, -1 where there is none."""
    if not positions.size:
        return np.full(len(starts), -1)
    last = np.searchsorted(positions, ends) - 1
    return np.where((last >= 0) & (positions[last] >= starts), last, -1)


def first_within(positions: Ints, starts: Ints, ends: Ints) -> Ints:
    """For each span the index of the first of the sorted positions inside it, -1 where there is none."""
    if not positions.size:
        return np.full(len(starts), -1)
    first = np.searchsorted(positions, starts)
    last = len(positions) - 1
    return np.where((first <= last) & (positions[np.minimum(first, last)] < ends), first, -1)
