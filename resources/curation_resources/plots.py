"""Plots for the Dagster UI, as Markdown images with an embedded PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from curation_resources.text import escape_cell, harmless, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#9aa5b1", "#2563eb", "#d97706", "#059669")
MARKS = "os^vD*Px"
BINS = 40
LONGEST_LABEL = 60
"""Maximum characters of a label; a longer one would leave no room for the plot."""

DARK = 0.6
"""Cells above this share of the largest value get white text."""


def histogram(groups: Mapping[str, Sequence[float]], title: str, x_label: str) -> str:
    """Plot overlaid histograms of one value in several groups; the first group is the background."""
    values = [value for group in groups.values() for value in group]
    low, high = wide_range(min(values), max(values)) if values else (0.0, 1.0)
    # Each group is copied into a list here; for large data, compute the counts and call `counted_histogram`.
    counted = {name: np.histogram(list(group), BINS, (low, high))[0].tolist() for name, group in groups.items()}
    return counted_histogram([float(edge) for edge in np.linspace(low, high, BINS + 1)], counted, title, x_label)


def counted_histogram(edges: Sequence[float], groups: Mapping[str, Sequence[int]], title: str, x_label: str) -> str:
    """Plot overlaid histograms from precomputed counts per bin and group."""
    figure, axes = _figure(title)
    for color, (name, counts) in zip(COLORS, groups.items(), strict=False):
        label = f"{name} ({sum(counts):,})"
        # One shape for each group, because drawing a bar for every bin takes much longer.
        axes.stairs(list(counts), list(edges), fill=True, color=color, alpha=0.75, label=_plain(label))
    axes.set_ylim(bottom=0)
    axes.set_xlabel(_plain(x_label))
    axes.set_ylabel("samples")
    if groups:
        axes.legend(frameon=False)
    return _markdown(figure, title)


def curve(values: Sequence[float], title: str, x_label: str, y_label: str) -> str:
    """Plot one curve over 1, 2, 3, ..."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(title)
    axes.plot(range(1, len(values) + 1), list(values), color=COLORS[1], marker="o", markersize=3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(_plain(x_label))
    axes.set_ylabel(_plain(y_label))
    return _markdown(figure, title)


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], title: str, x_label: str, y_label: str) -> str:
    """Plot several named curves from (x, y) points; markers as well as colours distinguish them."""
    figure, axes = _figure(title)
    for number, (name, points) in enumerate(lines.items()):
        xs, ys = [x for x, _ in points], [y for _, y in points]
        mark = MARKS[number % len(MARKS)]
        axes.plot(xs, ys, color=f"C{number % 10}", marker=mark, markersize=4, label=_plain(name))
    axes.set_xlabel(_plain(x_label))
    axes.set_ylabel(_plain(y_label))
    if lines:
        axes.legend(frameon=False, fontsize=7)
    return _markdown(figure, title)


def scatter(x: Sequence[float], y: Sequence[float], title: str, x_label: str, y_label: str) -> str:
    """Plot points, faint where there are many."""
    figure, axes = _figure(title)
    axes.scatter(list(x), list(y), s=8, color=COLORS[1], alpha=0.35, linewidths=0)
    axes.set_xlabel(_plain(x_label))
    axes.set_ylabel(_plain(y_label))
    return _markdown(figure, title)


def heat_map(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    scale: Literal["signed", "share"] = "signed",
) -> str:
    """Plot a matrix with a number in every cell; None leaves a cell empty.

    Args:
        values: by row, then column.
        rows: names of the rows.
        columns: names of the columns.
        title: title of the plot.
        scale: signed: values between -1 and 1, from blue over white to red; share: values between 0 and 1, as percent,
            from white to blue at the largest value.
    """
    figure, axes = _figure(title, height=1.4 + 0.32 * max(1, len(rows)))
    numbers = [[float("nan") if value is None else value for value in row] for row in values]
    shares = scale == "share"
    most = max((value for row in values for value in row if value is not None), default=1.0) if shares else 1.0
    most = most or 1.0
    if rows and columns:
        colors, least = ("Blues", 0.0) if shares else ("RdBu_r", -1.0)
        axes.imshow(numbers, cmap=colors, vmin=least, vmax=most, aspect="auto")
    axes.set_xticks(range(len(columns)), [_plain(name) for name in columns], rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), [_plain(name) for name in rows], fontsize=8)
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if value is not None:
                text = f"{value:.1%}" if shares else f"{value:.2f}"
                color = "white" if abs(value) > DARK * most else "black"
                axes.text(x, y, text, ha="center", va="center", fontsize=7, color=color)
    axes.spines[:].set_visible(False)
    return _markdown(figure, title)


def stacked_bars(shares: Mapping[str, Mapping[str, float]], title: str, x_label: str) -> str:
    """Plot one stacked bar per name; the shares of a bar sum to one."""
    figure, axes = _figure(title, height=1.4 + 0.32 * max(1, len(shares)))
    names = list(shares)[::-1]
    begin = [0.0] * len(names)
    for number, part in enumerate(dict.fromkeys(part for bar in shares.values() for part in bar)):
        widths = [shares[name].get(part, 0.0) for name in names]
        # Positions are numbers, so that two names that look the same still get a bar each.
        axes.barh(range(len(names)), widths, left=begin, label=_plain(part), color=f"C{number % 10}", alpha=0.85)
        begin = [start + width for start, width in zip(begin, widths, strict=True)]
    axes.set_yticks(range(len(names)), [_plain(name) for name in names], fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_xlabel(_plain(x_label))
    if shares:
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _markdown(figure, title)


def intervals(
    values: Sequence[tuple[str, float, float | None, float | None]], title: str, x_label: str, mark: float | None = None
) -> str:
    """Plot a dot with its interval for each name.

    Args:
        values: rows from top to bottom: name, value, and both ends of the interval (None: no interval).
        title: title of the plot.
        x_label: label of the x axis.
        mark: reference value, drawn as a vertical line.
    """
    figure, axes = _figure(title, height=1.4 + 0.28 * max(1, len(values)))
    for place, (_, value, low, high) in enumerate(values):
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=COLORS[0], linewidth=2.5, solid_capstyle="butt")
        axes.plot([value], [place], color=COLORS[1], marker="o", markersize=5)
    if mark is not None:
        axes.axvline(mark, color=COLORS[2], linewidth=1, linestyle="--")
    axes.set_yticks(range(len(values)), [_plain(name) for name, *_ in values], fontsize=8)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xlabel(_plain(x_label))
    return _markdown(figure, title)


def _plain(text: str) -> str:
    """Return untrusted text as a label: no formulas, and no leading underscore, which would hide it from the legend."""
    line = " ".join(harmless(shortened(text, LONGEST_LABEL)).split())
    shown = line.replace("$", "\\$")
    return f" {shown}" if shown.startswith("_") else shown


def wide_range(low: float, high: float) -> tuple[float, float]:
    """Return the lowest and highest value, widened if they are (almost) equal, so that bins can be cut."""
    narrow = max(abs(low), abs(high)) * 1e-9
    if high - low > narrow:
        return low, high
    return low - max(0.5, narrow), high + max(0.5, narrow)


def _figure(title: str, height: float = 3.2) -> tuple[Figure, Axes]:
    # Importing takes half a second, and only runs that plot need it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, height), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_plain(title), fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


_file: ContextVar[Path | None] = ContextVar("file", default=None)


@contextmanager
def drawn_to(path: Path) -> Iterator[None]:
    """Also write plots that are drawn inside the block to a file."""
    token = _file.set(path)
    try:
        yield
    finally:
        _file.reset(token)


def _markdown(figure: Figure, title: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path = _file.get()
    if path is not None:
        path.write_bytes(buffer.getvalue())
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"![{escape_cell(title)}](data:image/png;base64,{encoded})"
