"""From corpus rows to what the scoring and training code takes."""

from __future__ import annotations

import json

import polars as pl

from resources.scoring.samples import Sample, Segment


def samples_of(rows: pl.DataFrame, steps: pl.DataFrame | None = None) -> list[Sample]:
    """Samples from rows of `raw_corpus` and, if they are to be measured by segment, `segmented_steps`."""
    spans: dict[str, list[Segment]] = {}
    if steps is not None:
        for sample_id, index, start, end in steps.select("sample_id", "step_index", "start", "end").iter_rows():
            spans.setdefault(sample_id, []).append(Segment(index, start, end))
    columns = ("sample_id", "messages", "response", "images")
    return [
        Sample(sample_id, json.loads(messages), response, tuple(spans.get(sample_id, ())), tuple(images))
        for sample_id, messages, response, images in rows.select(columns).iter_rows()
    ]
