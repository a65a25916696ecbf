"""The slow twin of `segment_frame`: a loop over rows, each cut with regular expressions."""

from __future__ import annotations

import polars as pl

from curation_assets.config.corpus_settings import Segmentation
from curation_assets.steps.one_response import segment
from curation_assets.tables import SEGMENTED_STEPS


def segment_frame_plainly(raw_corpus: pl.DataFrame, settings: Segmentation) -> pl.DataFrame:
    """The table `segmented_steps`, row by row."""
    rows: list[tuple[str, int, str, int, int, str, bool]] = []
    distinct = raw_corpus.select("sample_id", "response", "steps", "answer").unique("sample_id", keep="any")
    for sample, response, steps, answer in distinct.iter_rows():
        found = segment(response, settings, steps, answer)
        if found.answer is not None:
            start, end, _, marker = found.answer
            rows.append((sample, 0, "answer", start, end, marker, False))
        rows.extend(
            (sample, index, "step", start, end, found.strategy, found.merged)
            for index, (start, end) in enumerate(found.steps, start=1)
        )
    return SEGMENTED_STEPS.conform(pl.DataFrame(rows, SEGMENTED_STEPS.schema, orient="row"))
