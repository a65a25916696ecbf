"""The answers of a slice of rows, by the rules of `curation_assets.steps.answers`, all rows together.

Each finder takes spans [start, end), one for each row that is looked at, and gives an answer for each; the names
are those of the functions for one row. Where a search would have to go on for too long, the row is left in doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from curation_assets.steps.slice_marks import SOLUTION, SOLUTION_END, THINK_END, Marks, SliceMarks
from curation_assets.steps.slice_text import (
    ALNUM,
    LONGEST_RUN,
    SPACE,
    Bools,
    Ints,
    SliceText,
    first_within,
    last_within,
    signs,
)

MARKERS = ("field", "dagger", "label", "solution", "think", "hashes", "boxed")
_FIELD, _DAGGER, _LABEL, _SOLUTION, _THINK, _HASHES, _BOXED = range(len(MARKERS))

_OPENING = signs(" \t*_#>`$([{\\")
_LABEL_OPENING = signs(" \t*_#>`")
_EDGE = SPACE | signs("*`")
_JOINS_NUMBERS = signs(".,_")


class Answers(NamedTuple):
    """Answers of rows: spans in the slice, where their markers begin, and markers by number; start -1: none."""

    starts: Ints
    ends: Ints
    marker_starts: Ints
    markers: Ints

    @classmethod
    def none(cls, count: int) -> Answers:
        """No answer for any of so many rows."""
        return cls(*(np.full(count, -1) for _ in range(4)))

    @property
    def found(self) -> Bools:
        """Which rows have one."""
        return self.starts >= 0

    def put(self, rows: Ints, answers: Answers) -> None:
        """Those of some rows."""
        for mine, given in zip(self, answers, strict=True):
            mine[rows] = given

    def at(self, rows: Ints | Bools) -> Answers:
        """Those of some rows."""
        return Answers(*(part[rows] for part in self))


def find_answers(
    text: SliceText, marks: SliceMarks, responses: Sequence[str], answer_fields: Sequence[str | None]
) -> Answers:
    """The answer of every row of a slice; what it gives for a row that is odd afterwards means nothing."""
    finder = _Finder(text, marks)
    answers = Answers.none(len(responses))
    finder.by_field(answers, responses, answer_fields)
    finder.by_markers(answers)
    return answers


class _Finder:
    def __init__(self, text: SliceText, marks: SliceMarks) -> None:
        self.text = text
        self.marks = marks

    def by_markers(self, answers: Answers) -> None:
        text = self.text
        rows = np.flatnonzero(~answers.found)
        starts, ends = text.starts[rows], text.ends[rows]
        thoughts = self.marks.of_name(THINK_END)
        thought = last_within(thoughts.starts, starts, ends)
        final = _taken(thoughts.ends, thought, starts)
        blocks = self.marks.of_name(SOLUTION)
        block = last_within(blocks.starts, starts, ends)
        block = np.where(thought >= 0, first_within(blocks.starts, final, ends), block)
        inside = _taken(blocks.ends, block, final)
        closings = self.marks.of_name(SOLUTION_END).starts
        closing = np.where(block >= 0, first_within(closings, inside, ends), -1)
        stops = _taken(closings, closing, ends)

        def attempt(which: Bools, finder: int, low: Ints, high: Ints, marker_starts: Ints | None = None) -> None:
            left = np.flatnonzero(which & ~answers.found[rows])
            if not left.size:
                return
            if marker_starts is None:
                answers.put(rows[left], self.find(finder, low[left], high[left]))
            else:
                answers.put(rows[left], self.unboxed(self.trimmed(low[left], high[left], marker_starts[left], finder)))

        everywhere = np.ones(len(rows), np.bool_)
        attempt(everywhere, _DAGGER, inside, stops)
        attempt(everywhere, _LABEL, inside, stops)
        attempt(block >= 0, _HASHES, inside, stops)
        attempt(block >= 0, _BOXED, inside, stops)
        attempt(block >= 0, _SOLUTION, inside, stops, _taken(blocks.starts, block, starts))
        attempt(thought >= 0, _THINK, final, ends, _taken(thoughts.starts, thought, starts))
        attempt(everywhere, _HASHES, starts, ends)
        attempt(everywhere, _BOXED, starts, ends)

    def by_field(self, answers: Answers, responses: Sequence[str], answer_fields: Sequence[str | None]) -> None:
        rows, starts, ends = self.said(responses, answer_fields)
        codes = self.text.codes
        before = codes[starts - 1]
        inside = ALNUM[before] | (_JOINS_NUMBERS[before] & ALNUM[codes[starts - 2]])
        good = ~(inside & ALNUM[codes[starts]]) & ~self.says(ends, self.text.ends[rows], tags=True)
        rows, starts, ends = rows[good], starts[good], ends[good]
        marker_starts = np.full(len(rows), -1)
        for finder in (_DAGGER, _LABEL, _HASHES, _BOXED):
            left = np.flatnonzero(marker_starts < 0)
            around = self.find(finder, self.text.starts[rows[left]], self.text.ends[rows[left]])
            holds = around.found & (around.marker_starts < starts[left])
            holds &= (around.starts <= starts[left]) & (starts[left] < around.ends)
            left, around = left[holds], around.at(holds)
            if finder != _BOXED:
                direct = ~self.says(around.starts, starts[left])
                left, around = left[direct], around.at(direct)
            marker_starts[left] = around.marker_starts
        left = np.flatnonzero(marker_starts < 0)
        marker_starts[left] = self.back_over(starts[left], _OPENING)
        answers.put(rows, Answers(starts, ends, marker_starts, np.full(len(rows), _FIELD)))

    def said(self, responses: Sequence[str], answer_fields: Sequence[str | None]) -> tuple[Ints, Ints, Ints]:
        """The rows whose response says their answer, and the span of its last occurrence."""
        rows, starts, lengths = [], [], []
        for row, field in enumerate(answer_fields):
            if field is not None and (said := field.strip()) and (start := responses[row].rfind(said)) >= 0:
                rows.append(row)
                starts.append(start)
                lengths.append(len(said))
        index = np.array(rows, np.int64)
        begin = np.array(starts, np.int64) + self.text.starts[index]
        return index, begin, begin + np.array(lengths, np.int64)

    def find(self, finder: int, starts: Ints, ends: Ints) -> Answers:
        """What one of the four finders that search gives in each span."""
        if finder == _DAGGER:
            last = last_within(self.marks.daggers.starts, starts, ends)
            return self.after_marks(self.marks.daggers, last, ends, _DAGGER)
        if finder == _LABEL:
            return self.label(starts, ends)
        return self.hashes(starts, ends) if finder == _HASHES else self.boxed(starts, ends)

    def label(self, starts: Ints, ends: Ints) -> Answers:
        labels, letters, options = self.marks.labels, self.marks.answers_a, self.marks.options_b
        label = last_within(labels.starts, starts, ends)
        letter = last_within(letters.starts, starts, ends)
        letter_ends = _taken(letters.ends, letter, starts)
        letter[first_within(options.starts, letter_ends, ends) >= 0] = -1
        letter_ends = _taken(letters.ends, letter, starts)
        use_letter = (letter >= 0) & ((label < 0) | (letter_ends > _taken(labels.ends, label, starts)))
        answers = self.after_marks(labels, np.where(use_letter, -1, label), ends, _LABEL)
        lettered = np.flatnonzero(use_letter)
        answers.put(lettered, self.after_marks(letters, letter[lettered], ends[lettered], _LABEL))
        return answers

    def after_marks(self, marks: Marks, chosen: Ints, ends: Ints, marker: int) -> Answers:
        """`_labelled` behind the chosen mark of each span, no answer where that is -1."""
        answers = Answers.none(len(chosen))
        asked = np.flatnonzero(chosen >= 0)
        begins, ends = marks.ends[chosen[asked]], ends[asked]
        marker_starts = self.back_over(marks.starts[chosen[asked]], _LABEL_OPENING)
        newline = first_within(self.text.newlines, begins, ends)
        line_ends = _taken(self.text.newlines, newline, ends)
        found = self.trimmed(begins, line_ends, marker_starts, marker)
        below = np.flatnonzero(~found.found & (newline >= 0))
        if below.size:
            start = self.after_space(line_ends[below])
            first, second = self.text.blank_lines
            blank = first_within(first, start, ends[below])
            blank[_taken(second, blank, ends[below]) >= ends[below]] = -1
            stop = _taken(first, blank, ends[below])
            found.put(below, self.trimmed(start, stop, marker_starts[below], marker))
        answers.put(asked, self.unboxed(found))
        return answers

    def after_space(self, positions: Ints) -> Ints:
        """The first sign of a word at or after each position, all of which are white space."""
        return self.text.words[0][self.text.words_before(positions)]

    def hashes(self, starts: Ints, ends: Ints) -> Answers:
        answers = Answers.none(len(starts))
        last = last_within(self.marks.hashes.starts, starts, ends)
        asked = np.flatnonzero(last >= 0)
        last, ends = last[asked], ends[asked]
        begins = self.marks.hashes.ends[last]
        line_ends = _taken(self.text.newlines, first_within(self.text.newlines, begins, ends), ends)
        silent = ~self.says(line_ends, ends, tags=True)
        begins, line_ends, last = begins[silent], line_ends[silent], last[silent]
        answers.put(asked[silent], self.trimmed(begins, line_ends, self.marks.hashes.starts[last], _HASHES))
        return answers

    def boxed(self, starts: Ints, ends: Ints) -> Answers:
        answers = Answers.none(len(starts))
        boxes = self.marks.boxes
        # The last one that ends within the span: it may hold the beginning of another.
        last = np.searchsorted(boxes.ends, ends, "right") - 1
        asked = np.flatnonzero(last >= 0)
        asked = asked[boxes.starts[last[asked]] >= starts[asked]]
        closes = self.closing(boxes.ends[last[asked]] - 1, ends[asked])
        asked, closes = asked[closes >= 0], closes[closes >= 0]
        marker_starts = self.back_over(boxes.starts[last[asked]], _OPENING)
        answers.put(asked, self.trimmed(boxes.ends[last[asked]], closes, marker_starts, _BOXED))
        return answers

    def closing(self, opens: Ints, ends: Ints) -> Ints:
        """Where the brace that belongs to an opening one stands before the end, or -1."""
        closes = np.full(len(opens), -1)
        if not opens.size:
            return closes
        braces, depths = self.marks.braces
        place = np.searchsorted(braces, opens)
        outside = depths[place] - 1
        live = np.arange(len(opens))
        for _ in range(LONGEST_RUN):
            place[live] += 1
            live = live[place[live] < len(braces)]
            live = live[braces[place[live]] < ends[live]]
            closed = depths[place[live]] == outside[live]
            closes[live[closed]] = braces[place[live[closed]]]
            live = live[~closed]
            if not live.size:
                return closes
        self.text.doubt(opens[live])
        return closes

    def unboxed(self, answers: Answers) -> Answers:
        asked = np.flatnonzero(answers.found)
        boxes = self.boxed(answers.starts[asked], answers.ends[asked])
        asked, boxes = asked[boxes.found], boxes.at(boxes.found)
        around = self.says(answers.starts[asked], boxes.marker_starts) | self.says(boxes.ends, answers.ends[asked])
        alone = asked[~around]
        answers.starts[alone] = boxes.starts[~around]
        answers.ends[alone] = boxes.ends[~around]
        return answers

    def says(self, starts: Ints, ends: Ints, tags: bool = False) -> Bools:
        """Whether letters or digits stand in each span; with `tags`, those of tags do not count."""
        codes = self.text.codes
        places = starts.copy()
        said = np.zeros(len(starts), np.bool_)
        live = np.flatnonzero(places < ends)
        for _ in range(LONGEST_RUN):
            if not live.size:
                return said
            here = ALNUM[codes[places[live]]]
            said[live[here]] = True
            live = live[~here]
            behind = places[live] + 1
            if tags:
                opens = np.flatnonzero(codes[places[live]] == ord("<"))
                after = self.marks.tag_from(places[live[opens]])
                behind[opens] = np.maximum(behind[opens], after)
            places[live] = behind
            live = live[behind < ends[live]]
        self.text.doubt(places[live])
        return said

    def back_over(self, positions: Ints, kind: Bools) -> Ints:
        """The positions moved back over markup, but not into a tag."""
        codes = self.text.codes
        moved = positions.copy()
        live = np.arange(len(moved))
        for _ in range(LONGEST_RUN):
            before = codes[moved[live] - 1]
            free = kind[before]
            closes = np.flatnonzero(before == ord(">"))
            free[closes] &= self.marks.tag_until(moved[live[closes]]) == moved[live[closes]]
            live = live[free]
            if not live.size:
                return moved
            moved[live] -= 1
        self.text.doubt(moved[live])
        return moved

    def trimmed(self, starts: Ints, ends: Ints, marker_starts: Ints, marker: int) -> Answers:
        """The spans without white space, emphasis and tags at their ends; none where nothing is left."""
        codes = self.text.codes
        starts, ends = starts.copy(), ends.copy()
        live = np.flatnonzero(starts < ends)
        for _ in range(LONGEST_RUN):
            head = starts[live]
            after = np.where(_EDGE[codes[head]], head + 1, head)
            opens = np.flatnonzero(codes[head] == ord("<"))
            after[opens] = self.marks.tag_from(head[opens])
            starts[live] = after
            live = live[(after > head) & (after < ends[live])]
            if not live.size:
                break
        self.text.doubt(starts[live])
        live = np.flatnonzero(starts < ends)
        for _ in range(LONGEST_RUN):
            tail = ends[live]
            before = np.where(_EDGE[codes[tail - 1]], tail - 1, tail)
            closes = np.flatnonzero(codes[tail - 1] == ord(">"))
            opened = self.marks.tag_until(tail[closes])
            before[closes] = np.where(opened >= starts[live[closes]], opened, tail[closes])
            ends[live] = before
            live = live[(before < tail) & (before > starts[live])]
            if not live.size:
                break
        self.text.doubt(ends[live])
        gone = starts >= ends
        answers = Answers(starts, ends, marker_starts.copy(), np.full(len(starts), marker))
        for part in answers:
            part[gone] = -1
        return answers


def _taken(values: Ints, places: Ints, otherwise: Ints) -> Ints:
    """The values at the places, something else where the place is -1."""
    return np.where(places >= 0, values[places], otherwise) if values.size else otherwise
