"""The steps of a slice of rows, by the rules of `curation_assets.steps.segmentation`, all rows together.

Segments are arrays over the slice; a region is a stretch of a row between marks. What is said of one row in
`curation_assets.steps.one_response` is said here of all of them, and the names are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from curation_assets.config.corpus_settings import Segmentation
from curation_assets.steps.one_response import AUTO_ORDER, WHOLE
from curation_assets.steps.slice_answers import Answers, find_answers
from curation_assets.steps.slice_cuts import Regions, cutter
from curation_assets.steps.slice_explicit import Listed
from curation_assets.steps.slice_marks import OTHER_TAG, SliceMarks
from curation_assets.steps.slice_text import Bools, Ints, SliceText

STRATEGIES = (*AUTO_ORDER, WHOLE)
_EXPLICIT = STRATEGIES.index("explicit")
_WHOLE = STRATEGIES.index(WHOLE)


class Pieces(NamedTuple):
    """Spans in order with their words and the regions that they are in."""

    starts: Ints
    ends: Ints
    words: Ints
    regions: Ints

    def at(self, kept: Ints | Bools) -> Pieces:
        """Some of them."""
        return Pieces(*(part[kept] for part in self))


class SliceSegments(NamedTuple):
    """What a slice of rows is cut into.

    The steps are arrays [steps], sorted by row and place: `rows`, `indices` from 1, `starts` and `ends` in characters
    of the row's response. By row [rows]: `strategies` (numbers of STRATEGIES), `merged`, `answers` (in characters,
    start -1: none), and `odd`, the rows that are left to be cut one by one and have no steps here.
    """

    rows: Ints
    indices: Ints
    starts: Ints
    ends: Ints
    strategies: Ints
    merged: Bools
    answers: Answers
    odd: Bools


def segment_slice(
    responses: Sequence[str], answer_fields: Sequence[str | None], listed: Listed | None, settings: Segmentation
) -> SliceSegments:
    """Cut the responses of a slice; `listed`: the steps that rows list, if the strategy looks at them."""
    text = SliceText(responses)
    marks = SliceMarks(text)
    answers = find_answers(text, marks, responses, answer_fields)
    regions = _regions(text, marks, np.where(answers.found, answers.marker_starts, text.ends))
    strategies, pieces = _Cutting(text, regions, settings).cut(listed)
    rows = regions.rows[pieces.regions]
    # Short ones, each all that its region holds, count only if there is no other.
    long = pieces.words >= settings.min_step_words
    has_long = np.zeros(len(responses), np.bool_)
    has_long[rows[long]] = True
    kept = (long | ~has_long[rows]) & ~text.odd[rows]
    pieces, rows = pieces.at(kept), rows[kept]
    counts = np.bincount(rows, minlength=len(responses))
    merged = counts > settings.max_steps
    starts, ends, rows = _merged_evenly(pieces, rows, counts, settings.max_steps)
    number = np.bincount(rows, minlength=len(responses))
    indices = np.arange(len(rows)) - np.repeat(np.cumsum(number) - number, number) + 1
    answers = answers._replace(
        starts=np.where(answers.found, answers.starts - text.starts, -1), ends=answers.ends - text.starts
    )
    offset = text.starts[rows]
    return SliceSegments(rows, indices, starts - offset, ends - offset, strategies, merged, answers, text.odd)


def _merged_evenly(pieces: Pieces, rows: Ints, counts: Ints, most: int) -> tuple[Ints, Ints, Ints]:
    """Starts, ends and rows of the spans; rows of too many merged as `merge_evenly` does it."""
    if not (counts > most).any():
        return pieces.starts, pieces.ends, rows
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    count = counts[rows]
    # Of n spans the k-th is in the last group g of c with g * n // c <= k; where nothing is merged, in its own.
    group = np.where(count > most, ((place + 1) * most - 1) // count, place)
    first = np.flatnonzero((group != np.roll(group, 1)) | (place == 0))
    last = np.append(first, len(rows))[1:] - 1
    return pieces.starts[first], pieces.ends[last], rows[first]


def _regions(text: SliceText, marks: SliceMarks, ends: Ints) -> Regions:
    """The stretches between marks that hold anything, before the end of each row; none of a row that is odd."""
    opens, closes, names = marks.tags
    named = names != OTHER_TAG
    opens, closes = opens[named], closes[named]
    if opens.size:
        inside = closes <= ends[text.rows_of(opens)]
        opens, closes = opens[inside], closes[inside]
    # Both are in order row by row, so that the n-th begin belongs to the n-th end.
    begins = np.sort(np.concatenate((text.starts, closes)))
    stops = np.sort(np.concatenate((ends, opens)))
    begins, stops = text.trimmed(begins, stops)
    rows = text.rows_of(begins)
    held = (begins < stops) & ~text.odd[rows]
    return Regions(begins[held], stops[held], rows[held])


class _Cutting:
    def __init__(self, text: SliceText, regions: Regions, settings: Segmentation) -> None:
        self.text = text
        self.regions = regions
        self.settings = settings
        numbers = np.arange(len(regions.starts))
        self.whole = Pieces(*regions[:2], text.count_words(*regions[:2]), numbers)

    def cut(self, listed: Listed | None) -> tuple[Ints, Pieces]:
        """The strategy of every row, and all segments, short ones joined."""
        name = self.settings.strategy
        strategies = np.full(len(self.text.starts), _WHOLE)
        if name == "auto":
            return strategies, self.auto(strategies, listed)
        if name != "explicit":
            strategies[:] = STRATEGIES.index(name)
            return strategies, self.apply(name, self.whole.regions)
        if listed is None:
            return strategies, self.whole
        strategies[listed.listing] = _EXPLICIT
        return strategies, _in_order([self.explicit(listed), self.whole.at(~listed.listing[self.regions.rows])])

    def auto(self, strategies: Ints, listed: Listed | None) -> Pieces:
        """The segments of the first strategy that yields two; fills in which one that is."""
        rows = self.regions.rows
        undecided = np.ones(len(strategies), np.bool_)
        parts: list[Pieces] = []
        if listed is not None:
            explicit = self.explicit(listed)
            undecided = np.bincount(rows[explicit.regions], minlength=len(strategies)) <= 1
            strategies[~undecided] = _EXPLICIT
            parts.append(explicit.at(~undecided[rows[explicit.regions]]))
        longest = self.longest()
        has_second = np.zeros(len(strategies), np.bool_)
        seconds: list[Pieces] = []
        for number, name in enumerate(AUTO_ORDER[1:], start=1):
            asked = np.flatnonzero(undecided[rows])
            if not asked.size:
                break
            pieces = self.apply(name, asked)
            several = np.bincount(pieces.regions, minlength=len(rows)) > 1
            decided = np.zeros(len(strategies), np.bool_)
            decided[rows[several & longest]] = True
            some = np.zeros(len(strategies), np.bool_)
            some[rows[several]] = True
            second = some & ~decided & ~has_second
            strategies[decided | second] = number
            parts.append(pieces.at(decided[rows[pieces.regions]]))
            seconds.append(pieces.at(second[rows[pieces.regions]]))
            undecided &= ~decided
            has_second |= second
        parts += [second.at(undecided[rows[second.regions]]) for second in seconds]
        parts.append(self.whole.at((undecided & ~has_second)[rows]))
        return _in_order(parts)

    def longest(self) -> Bools:
        """Which regions are the first of their rows with the most words."""
        words, rows = self.whole.words, self.regions.rows
        order = np.lexsort((-words, rows))
        longest = np.zeros(len(rows), np.bool_)
        longest[order[np.append(True, rows[order[1:]] != rows[order[:-1]])[: len(rows)]]] = True
        return longest

    def apply(self, name: str, asked: Ints) -> Pieces:
        """One strategy's segments of some regions, short ones joined."""
        if not asked.size:
            return self.whole.at(asked)
        regions = Regions(*(part[asked] for part in self.regions))
        cuts = cutter(name, self.settings.window_words)(self.text, regions)
        if not cuts.size:
            return self.whole.at(asked)
        # A region's own start comes before its cuts: each is as far on as there are cuts before it.
        heads = np.arange(len(asked)) + np.searchsorted(cuts, regions.starts)
        starts = np.empty(len(asked) + len(cuts), np.int64)
        is_head = np.zeros(len(starts), np.bool_)
        is_head[heads] = True
        starts[heads] = regions.starts
        starts[~is_head] = cuts
        place = np.cumsum(is_head) - 1
        before = self.text.words_before(starts)
        begins, stops = self.text.words
        broken = begins[before] != starts  # the segment begins inside a word
        ends = np.empty_like(starts)
        ends[:-1] = np.where(broken[1:], starts[1:], stops[before[1:] - 1])
        words_end = np.empty_like(starts)
        words_end[:-1] = before[1:]
        tails = np.append(heads, len(starts))[1:] - 1
        ends[tails] = regions.ends
        words_end[tails] = self.text.words_before(regions.ends)
        return self.joined(starts, ends, before - broken, words_end, asked[place], heads[place])

    def joined(self, starts: Ints, ends: Ints, first: Ints, last: Ints, regions: Ints, heads: Ints) -> Pieces:
        """Short segments joined to the one before, a short first one to the next.

        `first` and `last` number the words: a segment from one to another has last - first of them. `heads` is the
        place of the first segment of each one's region.
        """
        least = self.settings.min_step_words
        # A first segment, with all that joined it, draws in what follows as long as it is short.
        begins = last - first >= least
        begins[1:] &= last[:-1] - first[heads[1:]] >= least
        begins[heads] = True
        kept = np.flatnonzero(begins)
        stop = np.append(kept, len(starts))[1:] - 1
        return Pieces(starts[kept], ends[stop], last[stop] - first[kept], regions[kept])

    def explicit(self, listed: Listed) -> Pieces:
        """The listed steps of rows, those that lie in several regions divided, short ones joined."""
        lows = listed.starts + self.text.starts[listed.rows]
        highs = listed.ends + self.text.starts[listed.rows]
        first = np.searchsorted(self.regions.ends, lows, "right")
        count = np.maximum(np.searchsorted(self.regions.starts, highs) - first, 0)
        span = np.repeat(np.arange(len(lows)), count)
        region = np.repeat(first, count) + np.arange(len(span)) - np.repeat(np.cumsum(count) - count, count)
        starts = np.maximum(lows[span], self.regions.starts[region])
        starts, ends = self.text.trimmed(starts, np.minimum(highs[span], self.regions.ends[region]))
        held = starts < ends
        starts, ends, region = starts[held], ends[held], region[held]
        before = self.text.words_before(starts)
        broken = self.text.words[0][before] != starts
        changes = np.append(True, region[1:] != region[:-1])[: len(region)]
        heads = np.flatnonzero(changes)[np.cumsum(changes) - 1]
        return self.joined(starts, ends, before - broken, self.text.words_before(ends), region, heads)


def _in_order(parts: Sequence[Pieces]) -> Pieces:
    together = Pieces(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    return together.at(np.argsort(together.starts, kind="stable"))
