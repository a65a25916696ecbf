"""From a response to the spans of its steps, by the rules of docs/methods.md, section 1.

Only the text before the answer's marker is cut; what stands after the answer belongs to nothing. Marks such
as `<think>` and `<|end_of_thought|>` belong to no step: they divide the text into regions, and a step lies
inside one region. Offsets are in characters, words are what white space separates, so segmentation is the
same for every model.

`auto` takes the first strategy, in the order of AUTO_ORDER, that yields two steps or more. Where marks make
several regions, the strategy has to cut the region with the most words (or, if none can, some region): else a
long thought would be one step because a short solution after it is numbered. If no strategy cuts anything,
each region is one step, and the strategy is called `whole`. A named strategy is used whatever it yields;
`explicit` without a list of steps is `whole`.

Segments of fewer than `min_step_words` words join the one before, a short first one the next. One that is all
that its region holds can join nothing; it belongs to nothing, unless there is no longer one. More than
`max_steps` segments are merged with their neighbours, evenly, which may then reach over marks.

A shard is cut slice by slice, all rows of a slice together (`slice_segments`); the rows that this leaves are cut one
by one (`one_response`). Both follow the same rules and give the same segments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import polars as pl

from curation_assets.config.corpus_settings import Segmentation
from curation_assets.steps.one_response import segment
from curation_assets.steps.slice_answers import MARKERS
from curation_assets.steps.slice_explicit import locate_listed
from curation_assets.steps.slice_segments import STRATEGIES, SliceSegments, segment_slice
from curation_assets.steps.slice_text import Ints
from curation_assets.tables import SEGMENTED_STEPS

# Text of a slice in bytes. Larger ones save nothing, and the arrays of a slice take several times its text.
SLICE_BYTES = 2_000_000


def segment_frame(raw_corpus: pl.DataFrame, settings: Segmentation) -> pl.DataFrame:
    """The table `segmented_steps` of every distinct sample of a frame of `raw_corpus`.

    Needs the columns sample_id, response, answer and steps. A sample without text before an answer has no
    steps, and one without an answer has no row of kind answer.

    Raises:
        ValueError: the explicit steps of a sample do not stand in its response in their order.
    """
    columns = ["sample_id", "response", "answer"]
    if settings.strategy in ("auto", "explicit"):
        columns.append("steps")
    frame = raw_corpus.select(columns)
    # In the order of the table, so that the slices' parts of it follow one another.
    distinct = frame.select("sample_id").with_row_index().unique("sample_id", keep="any").sort("sample_id")["index"]
    parts = [_segment_rows(frame[rows], settings) for rows in _slices(frame["response"], distinct)]
    return pl.concat([SEGMENTED_STEPS.empty(), *parts], rechunk=False)


def _slices(responses: pl.Series, rows: pl.Series) -> Iterator[pl.Series]:
    """The rows, in turn, by so many that their text is not much more than SLICE_BYTES."""
    sizes = responses.str.len_bytes().gather(rows).to_numpy().astype(np.int64) + 1
    slices = (np.cumsum(sizes) - sizes) // SLICE_BYTES
    bounds = np.flatnonzero(np.append(True, slices[1:] != slices[:-1])[: len(slices)]).tolist()
    for low, high in pairwise([*bounds, len(rows)]):
        yield rows[low:high]


def _segment_rows(frame: pl.DataFrame, settings: Segmentation) -> pl.DataFrame:
    """The table of the rows of one slice."""
    responses = frame["response"].to_list()
    fields = frame["answer"].to_list()
    listed = locate_listed(frame["response"], frame["steps"]) if "steps" in frame.columns else None
    found = segment_slice(responses, fields, listed, settings)
    parts = [_table(frame["sample_id"], found)]
    if found.odd.any():
        left = frame.filter(found.odd)
        parts.append(pl.DataFrame(_rows(left, settings), SEGMENTED_STEPS.schema, orient="row"))
    return SEGMENTED_STEPS.conform(pl.concat(parts))


def _table(sample_ids: pl.Series, found: SliceSegments) -> pl.DataFrame:
    """The table of what a slice's rows are cut into together."""
    answered = np.flatnonzero(found.answers.found & ~found.odd)
    answers = found.answers.at(answered)
    rows = np.concatenate((answered, found.rows))
    order = np.argsort(rows, kind="stable")
    index = np.concatenate((np.zeros_like(answered), found.indices))[order]
    name = np.concatenate((answers.markers + len(STRATEGIES), found.strategies[found.rows]))[order]
    merged = np.concatenate((np.zeros(len(answered), np.bool_), found.merged[found.rows]))[order]
    return pl.DataFrame(
        {
            "sample_id": sample_ids.gather(rows[order]),
            "step_index": index.astype(np.int32),
            "kind": _named(("step", "answer"), (index == 0).astype(np.int64)),
            "start": np.concatenate((answers.starts, found.starts))[order],
            "end": np.concatenate((answers.ends, found.ends))[order],
            "strategy": _named((*STRATEGIES, *MARKERS), name),
            "merged": merged,
        }
    )


def _named(names: Sequence[str], numbers: Ints) -> pl.Series:
    return pl.Series(names, dtype=pl.String).gather(numbers)


def _rows(frame: pl.DataFrame, settings: Segmentation) -> Iterator[tuple[str, int, str, int, int, str, bool]]:
    """Rows of the table of samples that are cut one by one."""
    for sample in frame.iter_rows(named=True):
        found = segment(sample["response"], settings, sample.get("steps"), sample["answer"])
        if found.answer is not None:
            start, end, _, marker = found.answer
            yield sample["sample_id"], 0, "answer", start, end, marker, False
        for index, (start, end) in enumerate(found.steps, start=1):
            yield sample["sample_id"], index, "step", start, end, found.strategy, found.merged
