"""The strategies that cut a slice of rows, by the rules of `curation_assets.steps.cutting`, all regions together.

A region is trimmed, so a cut that is followed by white space cuts off the same as one behind that white space. Each
strategy gives its cuts as positions of signs that are not white space, and inside a region, without its start; no
segment between two of them is empty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from curation_assets.steps.cutting import ABBREVIATIONS, LONGEST_ABBREVIATION, WIDEST_INDENT
from curation_assets.steps.slice_text import (
    BARRIER,
    BLANK,
    DECIMAL,
    DIGIT,
    LOWER,
    SPACE,
    UPPER,
    Bools,
    Ints,
    SliceText,
    signs,
)


class Regions(NamedTuple):
    """Trimmed stretches [start, end) of text without marks, in order, and the rows that they are of."""

    starts: Ints
    ends: Ints
    rows: Ints

    def of(self, positions: Ints) -> tuple[Ints, Bools]:
        """The region that begins last at or before each position, and whether the position is inside it."""
        region = np.searchsorted(self.starts, positions, "right") - 1
        return region, (region >= 0) & (positions < self.ends[region])


Cutter = Callable[[SliceText, Regions], Ints]

_STEP_OPENING = signs(" \t#>*_-")
_SENTENCE_SIGN = signs(".!?;:")
_STEP_SIGN = signs(":.)\uff1a\u2013\u2014-")
_STARS = signs("*_")
_STARS_AND_BLANKS = signs("*_ \t")
_NUMBER_SIGN = signs(".)")
_NUMBERED_OPENING = DECIMAL | signs(" *")
_LINE_START = signs("\n")
_LINE_START[BARRIER] = True
_STOP = signs(".!?")
_CLOSER = signs("\"')]*\u201d\u2019")
_FULL_STOP = signs("\u3002\uff01\uff1f")
_FULL_CLOSER = signs("\u300d\u300f\u201d")
_DELIMITER = SPACE | signs("([\"'")


def _packed(words: Ints) -> Ints:
    """Words of at most eight codes [words, 8], zeros before them, as one number each."""
    return np.ascontiguousarray(words.astype(np.uint8)).view(np.int64)[:, 0]


def _packed_texts(texts: frozenset[str]) -> Ints:
    return _packed(np.array([[0] * (LONGEST_ABBREVIATION - len(text)) + list(text.encode()) for text in sorted(texts)]))


_ABBREVIATION_KEYS = _packed_texts(ABBREVIATIONS)
_NUMBER_KEYS = _packed_texts(frozenset({"no", "nos"}))


def _distinct(positions: Ints) -> Ints:
    """Sorted positions without those that stand there already."""
    return positions[np.append(True, positions[1:] != positions[:-1])] if positions.size else positions


def _within(text: SliceText, regions: Regions, positions: Ints) -> Ints:
    """The cuts behind positions of white space, in order, that lie inside regions."""
    positions = positions[regions.of(positions)[1]]
    return _distinct(text.words[0][text.words_before(positions)])


def cut_lines(text: SliceText, regions: Regions) -> Ints:
    """Cuts after line ends."""
    return _within(text, regions, text.newlines)


def cut_paragraphs(text: SliceText, regions: Regions) -> Ints:
    """Cuts after blank lines."""
    return _within(text, regions, text.blank_lines[0])


def window_cutter(words: int) -> Cutter:
    """Cuts every so many white-space separated words."""

    def cut(text: SliceText, regions: Regions) -> Ints:
        # A region may begin inside a word, which counts as its first; the others begin one.
        behind = text.words_before(regions.starts + 1)
        counts = text.words_before(regions.ends) - behind
        cuts = counts // words
        number = np.arange(cuts.sum()) - np.repeat(np.cumsum(cuts) - cuts, cuts)
        positions: Ints = text.words[0][np.repeat(behind, cuts) + (number + 1) * words - 1]
        return positions

    return cut


def cut_markers(text: SliceText, regions: Regions) -> Ints:
    """Cuts before `Step 3:`, else before `1.`, `1)` at line starts; the first marker of a region is no cut."""
    found, region = _step_heads(text, regions)
    several = np.bincount(region, minlength=len(regions.starts)) > 1
    kept = several[region] & _follows(region)
    steps = found[kept]
    if several.all():
        return steps
    found, region = _numbers(text, regions)
    numbered = (np.bincount(region, minlength=len(regions.starts)) > 1) & ~several
    numbers = found[numbered[region] & _follows(region)]
    return np.sort(np.concatenate((steps, numbers))) if numbers.size else steps


def _follows(region: Ints) -> Bools:
    """Which places in a sorted array hold the same as the place before."""
    return np.append(False, region[1:] == region[:-1]) if region.size else np.zeros(0, np.bool_)


def _step_heads(text: SliceText, regions: Regions) -> tuple[Ints, Ints]:
    """The first signs of `_STEP_HEAD` and the regions that they are in."""
    codes, folded = text.codes, text.folded
    steps = text.spelled(text.where((folded[:-1] == ord("s")) & (folded[1:] == ord("t"))), "step", fold=True)
    region, inside = regions.of(steps)
    steps, region = steps[inside], region[inside]
    number = text.after_run(steps + len("step"), BLANK)
    digits = np.minimum(text.after_run(number, DECIMAL), regions.ends[region])
    counted = (digits > number) & (digits - number <= 4)
    steps, region, digits = steps[counted], region[counted], digits[counted]
    limit = regions.ends[region]
    sign = text.after_run(text.after_run(digits, _STARS), BLANK)
    line = np.minimum(text.after_run(digits, _STARS_AND_BLANKS), limit)
    headed = (sign < limit) & _STEP_SIGN[codes[sign]]
    headed |= (line == limit) | (codes[line + (codes[line] == ord("\r"))] == ord("\n"))
    steps, region = steps[headed], region[headed]
    opening = text.before_run(steps, _STEP_OPENING)
    at_line = _LINE_START[codes[opening - 1]] & (opening >= regions.starts[region])
    blank = text.before_run(steps, BLANK)
    behind_sentence = (blank < steps) & _SENTENCE_SIGN[codes[blank - 1]] & (blank >= regions.starts[region])
    first = text.after_run(opening, BLANK)
    kept = at_line | behind_sentence
    return np.where(at_line, first, steps)[kept], region[kept]


def _numbers(text: SliceText, regions: Regions) -> tuple[Ints, Ints]:
    """The first signs of `_NUMBERED` and the regions that they are in."""
    codes = text.codes
    lines = np.sort(np.concatenate((text.newlines + 1, text.starts)))
    lines = lines[_NUMBERED_OPENING[codes[lines]]]
    region, inside = regions.of(lines)
    lines, region = lines[inside], region[inside]
    first = lines.copy()
    for _ in range(3):
        first += codes[first] == ord(" ")
    number = first + 2 * _double_star(text, first)
    digits = text.after_run(number, DECIMAL)
    good = (digits > number) & (digits - number <= 3) & _NUMBER_SIGN[codes[digits]]
    region, first, digits = region[good], first[good], digits[good]
    blank = digits + 1 + 2 * _double_star(text, digits + 1)
    behind = text.after_run(blank, BLANK)
    good = (behind > blank) & ~SPACE[codes[behind]] & (behind < regions.ends[region])
    return first[good], region[good]


def _double_star(text: SliceText, positions: Ints) -> Bools:
    double: Bools = (text.codes[positions] == ord("*")) & (text.codes[positions + 1] == ord("*"))
    return double


def cut_sentences(text: SliceText, regions: Regions) -> Ints:
    """Cuts after sentences, and after blank lines."""
    parts = [cut_paragraphs(text, regions), _after_stops(text, regions)]
    if not text.ascii:
        parts.append(_after_full_stops(text, regions))
    return _distinct(np.sort(np.concatenate(parts)))


def _after_full_stops(text: SliceText, regions: Regions) -> Ints:
    """Cuts after CJK's full stops, which need no white space."""
    codes = text.codes
    stops = text.where(_FULL_STOP[codes])
    stops = stops[~_FULL_STOP[codes[stops - 1]]]
    region, inside = regions.of(stops)
    stops, region = stops[inside], region[inside]
    after = text.after_run(text.after_run(stops, _FULL_STOP), _FULL_CLOSER)
    spaced = np.flatnonzero(SPACE[codes[after]])
    after[spaced] = text.words[0][text.words_before(after[spaced])]
    return after[after < regions.ends[region]]


def _after_stops(text: SliceText, regions: Regions) -> Ints:
    """Cuts after `.`, `!` and `?` with white space behind them that end a sentence."""
    codes = text.codes
    stops = text.where((codes == ord(".")) | (codes == ord("!")) | (codes == ord("?")))
    possible = (SPACE | _STOP | _CLOSER)[codes[stops + 1]] & ~_STOP[codes[stops - 1]]
    stops = stops[possible]
    region, inside = regions.of(stops)
    stops, region = stops[inside], region[inside]
    closers = text.after_run(text.after_run(stops, _STOP), _CLOSER)
    spaced = np.flatnonzero(SPACE[codes[closers]])
    stops, region = stops[spaced], region[spaced]
    cuts = text.words[0][text.words_before(closers[spaced])]
    before_end = cuts < regions.ends[region]
    stops, region, cuts = stops[before_end], region[before_end], cuts[before_end]
    dots: Bools = codes[stops] == ord(".")
    ends: Bools = ~(dots & LOWER[codes[cuts]])
    asked = np.flatnonzero(ends & dots & (codes[stops + 1] != ord(".")))
    ends[asked] = ~_no_full_stop(text, stops[asked], regions.starts[region[asked]], cuts[asked])
    kept: Ints = cuts[ends]
    return kept


def _no_full_stop(text: SliceText, stops: Ints, starts: Ints, cuts: Ints) -> Bools:
    """Whether a dot with no small letter behind it belongs to an abbreviation, an initial or a line's number."""
    width = LONGEST_ABBREVIATION
    places = stops[:, None] + np.arange(-width, 0)
    window = text.codes[places]
    outside = _DELIMITER[window] | (places < starts[:, None])
    # From the right, up to the first sign that is no part of the word.
    part = ~np.logical_or.accumulate(outside[:, ::-1], axis=1)[:, ::-1]
    length = part.sum(axis=1)
    small = np.where((window >= ord("A")) & (window <= ord("Z")), window | 0x20, window)
    keys = _packed(np.where(part, small, 0))
    numbers = np.isin(keys, _NUMBER_KEYS)
    initial = UPPER[window[:, -1]] & (length > 0) & ((length == 1) | (window[:, -2] == ord(".")))
    no_stop: Bools = np.isin(keys, _ABBREVIATION_KEYS) | initial
    counted = np.flatnonzero((length > 0) & (DIGIT[window] | ~part).all(axis=1) & ~no_stop & ~numbers)
    no_stop[counted] = _opens_line(text, stops[counted] - length[counted], starts[counted])
    no_stop[numbers] = DIGIT[text.codes[cuts[numbers]]]
    return no_stop


def _opens_line(text: SliceText, positions: Ints, starts: Ints) -> Bools:
    """Whether only a few blanks stand between the line's start and the positions."""
    first = np.maximum(starts, positions - WIDEST_INDENT)
    place = positions.copy()
    for _ in range(WIDEST_INDENT):
        place -= (place > first) & BLANK[text.codes[place - 1]]
    opens: Bools = np.where(place > first, text.codes[place - 1] == ord("\n"), first == starts)
    return opens


def cutter(name: str, window_words: int) -> Cutter:
    """The strategy of a name."""
    cutters: dict[str, Cutter] = {
        "markers": cut_markers,
        "paragraphs": cut_paragraphs,
        "lines": cut_lines,
        "sentences": cut_sentences,
        "words": window_cutter(window_words),
    }
    return cutters[name]
