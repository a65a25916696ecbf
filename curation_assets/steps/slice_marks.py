r"""Where the marks that answers and regions go by stand in a slice: tags, labels, `####`, boxes.

The rules are those of `curation_assets.steps.answers`, whose regular expressions are named beside each search. Every
mark contains a rare sign or pair of letters; those are searched for in the whole slice, and the rest of the mark is
looked at only around them.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from curation_assets.steps.slice_text import BARRIER, BLANK, LETTER, WORD, Bools, Ints, SliceText, first_within, signs

TAG_NAMES = (
    "<think>",
    "</think>",
    "<|begin_of_thought|>",
    "<|end_of_thought|>",
    "<|begin_of_solution|>",
    "<|end_of_solution|>",
    "<answer>",
    "</answer>",
)
THINK_END = TAG_NAMES.index("</think>")
SOLUTION = TAG_NAMES.index("<|begin_of_solution|>")
SOLUTION_END = TAG_NAMES.index("<|end_of_solution|>")
OTHER_TAG = -1

_COLON = signs(":\uff1a")
_EMPHASIS = signs("*_`")
_LINE_OPENING = signs(" \t*_#>`")
_LINE_START = signs("\n")
_LINE_START[BARRIER] = True
_LONGEST_NAME = 19
_LONGEST_BARRED_NAME = 30


class Marks(NamedTuple):
    """Spans [start, end) in order, without overlap."""

    starts: Ints
    ends: Ints


class SliceMarks:
    """The marks of a slice; each kind is looked for when it is first asked for."""

    def __init__(self, text: SliceText) -> None:
        self.text = text

    @cached_property
    def tags(self) -> tuple[Ints, Ints, Ints]:
        r"""Starts, ends, names of `</?[a-zA-Z]\w{0,19}>` and `<\|\w{1,30}\|>`: TAG_NAMES' number, or OTHER_TAG."""
        codes = self.text.codes
        opens = self.text.where(codes == ord("<"))
        behind = opens + 1 + (codes[opens + 1] == ord("/"))
        plain = LETTER[codes[behind]]
        barred = (codes[opens + 1] == ord("|")) & WORD[codes[opens + 2]]
        kept = plain | barred
        opens, name, barred = opens[kept], (behind + 1)[kept], barred[kept]
        name[barred] = opens[barred] + 2
        # Longer than LONGEST_RUN leaves a row in doubt, which is not needed here but does no harm.
        stop = self.text.after_run(name, WORD)
        length = stop - name
        good = (codes[stop] == ord(">")) & (length <= _LONGEST_NAME)
        good[barred] = (self.text.codes[stop] == ord("|"))[barred] & (codes[stop + 1] == ord(">"))[barred]
        good[barred] &= length[barred] <= _LONGEST_BARRED_NAME
        opens, ends = opens[good], (stop + 1 + barred)[good]
        names = np.full(len(opens), OTHER_TAG)
        for number, name_text in enumerate(TAG_NAMES):
            names[np.searchsorted(opens, self.text.spelled(opens, name_text))] = number
        return opens, ends, names

    def of_name(self, name: int) -> Marks:
        """The tags of a name."""
        starts, ends, names = self.tags
        return Marks(starts[names == name], ends[names == name])

    def tag_from(self, positions: Ints) -> Ints:
        """The end of the tag that begins at each position, the position itself where there is none."""
        starts, ends, _ = self.tags
        place = first_within(starts, positions, positions + 1)
        return np.where(place >= 0, ends[place], positions) if ends.size else positions

    def tag_until(self, positions: Ints) -> Ints:
        """The start of the tag that ends at each position, the position itself where there is none."""
        starts, ends, _ = self.tags
        place = first_within(ends, positions, positions + 1)
        return np.where(place >= 0, starts[place], positions) if ends.size else positions

    @cached_property
    def daggers(self) -> Marks:
        """`_DAGGER`."""
        text = self.text
        if text.ascii:
            return Marks(np.zeros(0, np.int64), np.zeros(0, np.int64))
        daggers = text.where(text.codes == signs("†").argmax())
        words = text.after_run(daggers + 1, BLANK)
        kept = np.isin(words, text.spelled(words, "answer", fold=True))
        stop = self._after_label(words[kept] + len("answer"))
        colon = _COLON[text.codes[stop]]
        return Marks(daggers[kept][colon], stop[colon] + 1)

    @cached_property
    def labels(self) -> Marks:
        """`_LABEL`. Each match holds one "answer", and they do not overlap."""
        text, codes, folded = self.text, self.text.codes, self.text.folded
        middle = text.where((folded[:-1] == ord("s")) & (folded[1:] == ord("w")))
        words = text.spelled(middle[middle >= 2] - 2, "answer", fold=True)
        stop = self._after_label(words + len("answer"))
        blanks = text.before_run(words, BLANK)
        final = text.spelled(blanks - len("final"), "final", fold=True)
        final = final[~WORD[codes[final - 1]]]
        after_final = np.isin(blanks - len("final"), final) & (blanks < words)
        colon = _COLON[codes[stop]]
        behind = stop + (codes[stop] == ord("\r"))
        line_end = _LINE_START[codes[behind]] & after_final
        # A solution block may end here, which ends the line only where nothing after the block is looked at.
        text.doubt(stop[after_final & (codes[behind] == ord("<"))])
        good = line_end | colon & (after_final | ~WORD[codes[words - 1]])
        starts = np.where(after_final, blanks - len("final"), words)
        return Marks(starts[good], np.where(colon, stop + 1, behind)[good])

    def _after_label(self, positions: Ints) -> Ints:
        return self.text.after_run(self.text.after_run(positions, _EMPHASIS), BLANK)

    def lettered(self, letter: str) -> Marks:
        """`_LETTER` and `_OPTION_B`: lines that begin with `A:`."""
        text, codes = self.text, self.text.codes
        found = text.where(codes == ord(letter))
        behind = _COLON | _EMPHASIS | BLANK
        before = _LINE_OPENING | _LINE_START
        found = found[behind[codes[found + 1]] & before[codes[found - 1]]]
        stop = self._after_label(found + 1)
        kept = _COLON[codes[stop]]
        found, stop = found[kept], stop[kept]
        begin = text.before_run(found, _LINE_OPENING)
        kept = _LINE_START[codes[begin - 1]]
        return Marks(begin[kept], stop[kept] + 1)

    @cached_property
    def answers_a(self) -> Marks:
        """Lines that begin with `A:`."""
        return self.lettered("A")

    @cached_property
    def options_b(self) -> Marks:
        """Lines that begin with `B:`."""
        return self.lettered("B")

    @cached_property
    def hashes(self) -> Marks:
        """`_HASHES`: exactly four."""
        codes = self.text.codes
        four = self.text.spelled(self.text.where(codes == ord("#")), "####")
        four = four[(codes[four - 1] != ord("#")) & (codes[four + 4] != ord("#"))]
        return Marks(four, four + 4)

    @cached_property
    def boxes(self) -> Marks:
        """`_BOXED`."""
        codes = self.text.codes
        starts = self.text.spelled(self.text.where(codes == ord("\\")), "\\boxed")
        stop = self.text.after_run(starts + len("\\boxed"), BLANK)
        opened = codes[stop] == ord("{")
        return Marks(starts[opened], stop[opened] + 1)

    @cached_property
    def braces(self) -> tuple[Ints, Ints]:
        r"""Where braces stand that are no signs of their own (`\{`), and the depth behind each of them."""
        codes = self.text.codes
        found = self.text.where((codes == ord("{")) | (codes == ord("}")))
        escaped = np.flatnonzero(codes[found - 1] == ord("\\"))
        run = found[escaped] - self.text.before_run(found[escaped], signs("\\"))
        kept: Bools = np.ones(len(found), np.bool_)
        kept[escaped[run % 2 == 1]] = False
        found = found[kept]
        return found, np.cumsum(np.where(codes[found] == ord("{"), 1, -1))
