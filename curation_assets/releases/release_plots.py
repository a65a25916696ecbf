"""Plots of a release's selection, as files shown in its card."""

from __future__ import annotations

from pathlib import Path

from curation_assets.releases.file_names import PLOTS
from curation_assets.subsets.facts import Selection, Summary
from curation_resources.plots import counted_histogram, drawn_to, scatter, stacked_bars

MOST_SOURCES = 12


def write_plots(place: Path, selection: Selection, score: str) -> dict[str, str]:
    """Plot scores of pool and selection, scores by length, and sources; return the titles by path."""
    (place / PLOTS).mkdir()
    summary = selection.summary
    groups = {"pool": summary.pool_counts, "selected": summary.selected_counts}
    sources = {
        "pool": _shares(summary, "pool", summary.pool),
        "selected": _shares(summary, "selected", summary.selected),
    }
    titles = {
        f"{PLOTS}/score.png": f"{score}: pool and selection",
        f"{PLOTS}/length.png": f"{score} by length of the response",
        f"{PLOTS}/sources.png": "sources of pool and selection",
    }
    by_score, by_length, by_source = titles
    with drawn_to(place / by_score):
        counted_histogram(summary.edges, groups, titles[by_score], score)
    with drawn_to(place / by_length):
        tokens, scores = summary.points["response_tokens"].to_list(), summary.points["score"].to_list()
        scatter(tokens, scores, titles[by_length], "tokens", score)
    with drawn_to(place / by_source):
        stacked_bars(sources, titles[by_source], "share of samples")
    return titles


def _shares(summary: Summary, of: str, count: int) -> dict[str, float]:
    """Return the shares of the largest sources of the pool or selection, with the rest combined."""
    counts = (
        summary.sources.select("source", of)
        .filter(summary.sources[of] > 0)
        .sort(of, "source", descending=[True, False])
    )
    shares: dict[str, float] = {}
    for place, (source, samples) in enumerate(counts.iter_rows()):
        name = source if place < MOST_SOURCES else "(others)"
        shares[name] = shares.get(name, 0.0) + samples / count
    return shares
