"""Pictures of a release's choice, as files that its card shows."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from curation_assets.asset_metadata import finite
from curation_assets.releases.files import PLOTS
from curation_assets.reports.plots import drawn_to, histogram, scatter, stacked_bars
from curation_assets.subsets.select import Selection

MOST_SOURCES = 12


def write_plots(place: Path, selection: Selection, score: str) -> dict[str, str]:
    """Draw scores of pool and choice, scores by length, and sources; gives what each file shows, by its path."""
    (place / PLOTS).mkdir()
    pool = selection.pool
    chosen, scored = pool.filter("selected"), pool.filter(pl.col("score").is_finite())
    groups = {"pool": finite(pool, "score"), "chosen": finite(chosen, "score")}
    sources = {"pool": _shares(pool), "chosen": _shares(chosen)}
    titles = {
        f"{PLOTS}/score.png": f"{score}: pool and choice",
        f"{PLOTS}/length.png": f"{score} by length of the response",
        f"{PLOTS}/sources.png": "sources of pool and choice",
    }
    by_score, by_length, by_source = titles
    with drawn_to(place / by_score):
        histogram(groups, titles[by_score], score)
    with drawn_to(place / by_length):
        tokens, scores = scored["response_tokens"].to_list(), scored["score"].to_list()
        scatter(tokens, scores, titles[by_length], "tokens", score)
    with drawn_to(place / by_source):
        stacked_bars(sources, titles[by_source], "share of samples")
    return titles


def _shares(rows: pl.DataFrame) -> dict[str, float]:
    """Of the largest sources; the rest together."""
    counts = rows.group_by("source").len().sort("len", "source", descending=[True, False])
    shares: dict[str, float] = {}
    for place, (source, count) in enumerate(counts.iter_rows()):
        name = source if place < MOST_SOURCES else "(others)"
        shares[name] = shares.get(name, 0.0) + count / len(rows)
    return shares
