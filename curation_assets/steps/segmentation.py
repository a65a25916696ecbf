"""Segmentation: a response becomes the spans of its steps and its answer (docs/methods.md, "GRACE").

Only the text before the answer's marker is cut. Text after the answer belongs to no segment. Tags such as `<think>`
and `<|end_of_thought|>` belong to no step: they divide the text into regions, and a step lies inside one region.
Offsets are in characters and words are those of `cutting.count_words`, so segments are the same for every model. No
strategy but `explicit` cuts inside a fenced code block.

`auto` uses the first strategy of AUTO_ORDER that yields two or more steps. Where tags make several regions, the
strategy must cut the region with the most words (or, if none can, any region); otherwise a long thought would be one
step because the short solution after it is numbered. If no strategy cuts anything, each region is one step and the
strategy is called `whole`. A named strategy is used whatever it yields; `explicit` without a list of steps is
`whole`.

Segments with fewer than `min_step_words` words are joined to the one before; a short first segment is joined to the
next. A short segment that is alone in its region is dropped, unless no longer one exists. More than `max_steps`
segments are merged evenly with their neighbours, which may then cross tags.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import polars as pl

from curation_assets import tables
from curation_assets.config.corpus_settings import Segmentation
from curation_assets.corpus.explicit_steps import locate_steps
from curation_assets.steps.answers import TAGS, Answer, find_answer
from curation_assets.steps.cutting import (
    Cutter,
    code_blocks,
    count_words,
    cut_lines,
    cut_markers,
    cut_paragraphs,
    cut_sentences,
    outside_blocks,
    window_cutter,
)
from curation_assets.workspace.fingerprints import input_fingerprint, segmentation_key, steps_fingerprint
from curation_assets.workspace.versions import SEGMENTATION_VERSION
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.warehouse import WarehouseError

VERSION, SETTINGS, INPUT = "segmentation_version", "segmentation_settings", "input"
"""Metadata of a table: the version of the rules that cut it, a key of the settings, and the fingerprint that records of
what was measured by it name."""

SAMPLES, WITHOUT_ANSWER, EXAMPLES = "samples", "without_answer", "without_answer_examples"
"""Metadata of a table: numbers of samples, and ids of some without an answer."""

MOST_EXAMPLES = 3
Span = tuple[int, int]
Regions = list[list[Span]]

AUTO_ORDER = ("explicit", "markers", "paragraphs", "lines", "sentences", "words")
WHOLE = "whole"
WRONG_ORDER = "the explicit steps do not occur in the response in their order"


class Segments(NamedTuple):
    """The spans [start, end) of a response's steps in characters, in order, and of its answer.

    The steps are disjoint and not empty, have no white space at their ends, and end before the answer's marker.
    `strategy` is the one that cut them; `merged` means that there were more than `max_steps`.
    """

    steps: tuple[Span, ...]
    strategy: str
    answer: Answer | None
    merged: bool


def segment(
    response: str,
    settings: Segmentation,
    explicit_steps: Sequence[str] | None = None,
    answer_field: str | None = None,
) -> Segments:
    """Cut a response into steps and answer.

    Raises:
        ValueError: the explicit steps do not occur in the response in their order.
    """
    answer = find_answer(response, answer_field)
    regions = _regions(response, len(response) if answer is None else answer.marker_start)
    strategy, segments = _cut(response, regions, settings, explicit_steps or ())
    steps = _without_short(response, segments, settings.min_step_words)
    merged = len(steps) > settings.max_steps
    if merged:
        steps = merge_evenly(steps, settings.max_steps)
    return Segments(tuple(steps), strategy, answer, merged)


def merge_evenly(spans: Sequence[Span], count: int) -> list[Span]:
    """Merge neighbours into `count` spans whose numbers of parts differ by at most one."""
    bounds = [index * len(spans) // count for index in range(count + 1)]
    return [(spans[low][0], spans[high - 1][1]) for low, high in pairwise(bounds) if high > low]


def _regions(response: str, end: int) -> list[Span]:
    """Return the nonempty stretches between tags, before `end`."""
    regions: list[Span] = []
    start = 0
    for tag in TAGS.finditer(response, 0, end):
        regions.append((start, tag.start()))
        start = tag.end()
    regions.append((start, end))
    return [span for span in (_trim(response, *region) for region in regions) if span[0] < span[1]]


def _cut(
    response: str, regions: list[Span], settings: Segmentation, explicit_steps: Sequence[str]
) -> tuple[str, Regions]:
    """Return the strategy and its segments, region by region, with short ones joined."""

    def apply(name: str) -> Regions:
        cut = _apply(name, response, regions, settings, explicit_steps)
        return [_joined(response, spans, settings.min_step_words) for spans in cut]

    whole: Regions = [[region] for region in regions]
    if settings.strategy != "auto":
        known = settings.strategy != "explicit" or explicit_steps
        return (settings.strategy, apply(settings.strategy)) if known else (WHOLE, whole)
    if explicit_steps:
        segments = apply("explicit")
        if sum(map(len, segments)) > 1:
            return "explicit", segments
    longest = max(range(len(regions)), key=lambda index: _words(response, regions[index]), default=0)
    second_best: tuple[str, Regions] | None = None
    for name in AUTO_ORDER[1:]:
        segments = apply(name)
        if segments and len(segments[longest]) > 1:
            return name, segments
        if second_best is None and any(len(spans) > 1 for spans in segments):
            second_best = name, segments
    return second_best or (WHOLE, whole)


def _apply(
    name: str, response: str, regions: list[Span], settings: Segmentation, explicit_steps: Sequence[str]
) -> Regions:
    """Return one strategy's segments of every region, trimmed and without empty ones."""
    if name == "explicit":
        spans = locate_steps(response, explicit_steps)
        if spans is None:
            raise ValueError(WRONG_ORDER)
        return _inside(response, spans, regions)
    cutters: dict[str, Cutter] = {
        "markers": cut_markers,
        "paragraphs": cut_paragraphs,
        "lines": cut_lines,
        "sentences": cut_sentences,
        "words": window_cutter(settings.window_words),
    }
    blocks = code_blocks(response)
    return [
        list(_between(response, region, outside_blocks(cutters[name](response, *region), blocks))) for region in regions
    ]


def _between(response: str, region: Span, cuts: list[int]) -> Iterator[Span]:
    bounds = [region[0], *cuts, region[1]]
    for low, high in pairwise(bounds):
        start, end = _trim(response, low, high)
        if start < end:
            yield start, end


def _inside(response: str, spans: list[Span], regions: list[Span]) -> Regions:
    """Return the spans of each region, dividing those that cross regions; both lists are in order and scanned once."""
    found: Regions = []
    first = 0
    for region in regions:
        while first < len(spans) and spans[first][1] <= region[0]:
            first += 1
        inside = []
        place = first
        while place < len(spans) and spans[place][0] < region[1]:
            start, end = _trim(response, max(spans[place][0], region[0]), min(spans[place][1], region[1]))
            if start < end:
                inside.append((start, end))
            place += 1
        found.append(inside)
    return found


def _joined(response: str, spans: list[Span], min_words: int) -> list[Span]:
    """Join short segments to the one before, and a short first one to the next."""
    joined: list[Span] = []
    last_is_short = False
    for span in spans:
        short = _words(response, span) < min_words
        if joined and (short or last_is_short):
            joined[-1] = (joined[-1][0], span[1])
            # Only the first segment can still be short, and only while everything joined to it was short too.
            last_is_short = last_is_short and _words(response, joined[-1]) < min_words
        else:
            joined.append(span)
            last_is_short = short
    return joined


def _without_short(response: str, segments: Regions, min_words: int) -> list[Span]:
    """Return all regions' segments without short ones, unless all are short."""
    spans = [span for region in segments for span in region]
    long = [span for span in spans if _words(response, span) >= min_words]
    return long or spans


def _trim(response: str, start: int, end: int) -> Span:
    """Return the span without white space at its ends; (start, start) if it is blank."""
    if end <= start:
        return start, start
    piece = response[start:end]
    stripped = piece.lstrip()
    start += len(piece) - len(stripped)
    return start, start + len(stripped.rstrip())


def _words(response: str, span: Span) -> int:
    return count_words(response[span[0] : span[1]])


def segment_frame(raw_corpus: pl.DataFrame, settings: Segmentation) -> pl.DataFrame:
    """Return table `segmented_steps` of every distinct sample of a frame of `raw_corpus`.

    Needs the columns sample_id, response, answer and steps. A sample without text before its answer has no steps, and
    a sample without an answer has no row of kind answer.

    Raises:
        ValueError: the explicit steps of a sample do not occur in its response in their order.
    """
    distinct = raw_corpus.select("sample_id", "response", "answer", "steps").unique("sample_id", keep="any")
    rows = pl.DataFrame(_rows(distinct, settings), tables.SEGMENTED_STEPS.schema, orient="row")
    return tables.SEGMENTED_STEPS.conform(rows)


def _rows(frame: pl.DataFrame, settings: Segmentation) -> Iterator[tuple[str, int, str, int, int, str, bool]]:
    for sample_id, response, answer, steps in frame.iter_rows():
        found = segment(response, settings, steps, answer)
        if found.answer is not None:
            start, end, _, marker = found.answer
            yield sample_id, 0, "answer", start, end, marker, False
        for index, (start, end) in enumerate(found.steps, start=1):
            yield sample_id, index, "step", start, end, found.strategy, found.merged


def without_answer(rows: pl.DataFrame) -> dict[str, str]:
    """Return facts about a table: its samples, those without an answer, and three of these."""
    answers = rows.group_by("sample_id").agg((pl.col("kind") == "answer").any().alias("answered"))
    without = answers.filter(~pl.col("answered"))["sample_id"].sort()
    facts = {SAMPLES: str(len(answers)), WITHOUT_ANSWER: str(len(without))}
    return facts | ({EXAMPLES: " ".join(without.head(MOST_EXAMPLES).to_list())} if len(without) else {})


def version_of(facts: Mapping[str, str] | None, settings: str) -> int | None:
    """Return the version of the rules that cut a table, from its metadata; None if it had other settings.

    Args:
        facts: the metadata; None if there is no table.
        settings: `segmentation_key(workspace, 0)`.
    """
    # Tables of version 1 name neither their version nor their settings.
    if not facts or facts.get(SETTINGS, settings) != settings:
        return None
    return int(facts.get(VERSION, "1"))


def _keep_earlier(workspace: Workspace, shard: str) -> None:
    """Keep a shard's table of the version before this one, by which measurements stay valid (`signals.carrying`)."""
    path, kept = (f"{folder}/{shard}.parquet" for folder in (tables.segmented_steps_dir(), tables.earlier_steps_dir()))
    settings = segmentation_key(workspace, 0)
    before = workspace.warehouse.table_metadata(path) or {}
    version = version_of(before, settings)
    if version == SEGMENTATION_VERSION - 1:
        try:
            earlier = workspace.warehouse.read_table(path)
        except WarehouseError:
            # A damaged table vouches for nothing; it is written again below.
            return
        # What was measured by it names this fingerprint.
        facts = {VERSION: str(version), SETTINGS: settings, INPUT: input_fingerprint(before)}
        workspace.warehouse.write_table(kept, earlier, facts)


class SegmentedShard(NamedTuple):
    """Counts of one shard's table `segmented_steps`."""

    rows: int
    samples: int
    steps: int
    merged_samples: int


def segment_shard(workspace: Workspace, shard: str) -> SegmentedShard:
    """Write table `segmented_steps` of a shard.

    A shard that was never read, because its file disappeared first, gives no table.
    """
    source = f"{tables.raw_corpus_dir()}/{shard}.parquet"
    metadata = workspace.warehouse.table_metadata(source)
    if not metadata:
        return SegmentedShard(0, 0, 0, 0)
    rows = segment_frame(workspace.warehouse.read_table(source), workspace.settings.corpus.segmentation)
    facts = {
        "fingerprint": steps_fingerprint(workspace, metadata["fingerprint"]),
        "images": metadata["images"],
        **without_answer(rows),
        SETTINGS: segmentation_key(workspace, 0),
        VERSION: str(SEGMENTATION_VERSION),
    }
    _keep_earlier(workspace, shard)
    workspace.warehouse.write_table(f"{tables.segmented_steps_dir()}/{shard}.parquet", rows, facts)
    return SegmentedShard(
        rows=len(rows),
        samples=rows["sample_id"].n_unique(),
        steps=int((rows["kind"] == "step").sum()),
        merged_samples=rows.filter("merged")["sample_id"].n_unique(),
    )
