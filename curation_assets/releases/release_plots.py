"""Pictures of a release's choice, as files that its card shows."""

from __future__ import annotations

from pathlib import Path

from curation_assets.releases.file_names import PLOTS
from curation_assets.subsets.selection import Selection
from curation_assets.subsets.summary import Summary
from curation_resources.plots import counted_histogram, drawn_to, scatter, stacked_bars

MOST_SOURCES = 12


def write_plots(place: Path, selection: Selection, score: str) -> dict[str, str]:
    """Draw scores of pool and choice, scores by length, and sources; gives what each file shows, by its path."""
    (place / PLOTS).mkdir()
    told = selection.summary
    groups = {"pool": told.pool_counts, "chosen": told.selected_counts}
    sources = {"pool": _shares(told, "pool", told.pool), "chosen": _shares(told, "selected", told.selected)}
    titles = {
        f"{PLOTS}/score.png": f"{score}: pool and choice",
        f"{PLOTS}/length.png": f"{score} by length of the response",
        f"{PLOTS}/sources.png": "sources of pool and choice",
    }
    by_score, by_length, by_source = titles
    with drawn_to(place / by_score):
        counted_histogram(told.edges, groups, titles[by_score], score)
    with drawn_to(place / by_length):
        tokens, scores = told.points["response_tokens"].to_list(), told.points["score"].to_list()
        scatter(tokens, scores, titles[by_length], "tokens", score)
    with drawn_to(place / by_source):
        stacked_bars(sources, titles[by_source], "share of samples")
    return titles


def _shares(told: Summary, of: str, count: int) -> dict[str, float]:
    """Of the largest sources of pool or choice; the rest together."""
    counts = told.sources.select("source", of).filter(told.sources[of] > 0).sort(of, "source", descending=[True, False])
    shares: dict[str, float] = {}
    for place, (source, samples) in enumerate(counts.iter_rows()):
        name = source if place < MOST_SOURCES else "(others)"
        shares[name] = shares.get(name, 0.0) + samples / count
    return shares
