"""Terminal output of `curate`: progress bars, tables, and traces coloured by score."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import polars as pl
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from curation_resources.progress import shown_on
from curation_resources.scoring.samples import turn_text
from curation_resources.text import LONGEST_CELL, harmless, shortened

LONG_LIST = 6
SHORT_LIST = 3
LONG_CELL = 24
MAKE_ROOM = (
    *("candidate", "row", "shard", "prompt_id", "flags", "tokens", "domain", "generator", "reward"),
    *("images", "image_digests", "extra", "correct", "verified", "answer_norm", "response_tokens", "n_steps", "source"),
)
"""Columns to drop first from a table that is too wide: those that appear in many tables."""
LOW, HIGH = (190, 60, 60), (40, 150, 90)
PARTS = ("answer_alignment", "trajectory_consistency")
REACH = 2.0
"""Standard deviations from the mean at which the colour of a step ends."""


class ProgressBars:
    """Rich progress bars for `curation_resources.progress`."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def start(self, description: str, total: int) -> int:
        """Start a new bar."""
        return int(self._progress.add_task(description, total=total))

    def advance(self, bar: int, count: int) -> None:
        """Advance a bar."""
        self._progress.advance(TaskID(bar), count)

    def finish(self, bar: int) -> None:
        """Stop a bar at its current position."""
        self._progress.stop_task(TaskID(bar))


@contextmanager
def progress_bars(console: Console) -> Iterator[Progress]:
    """Show the progress of everything inside the block as bars."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress, shown_on(ProgressBars(progress)):
        yield progress


def simple_table(title: str, headers: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """Return a table; numeric columns are right-aligned."""
    made = [["–" if cell is None else cell for cell in row] for row in rows]
    table = Table(title=Text(harmless(title), style="italic"), title_justify="left", header_style="bold")
    for position, header in enumerate(headers):
        number = bool(made) and all(isinstance(row[position], int | float) for row in made)
        # In a narrow terminal, names that differ in their last letters must not end in an ellipsis.
        table.add_column(Text(harmless(header)), justify="right" if number else "left", overflow="fold")
    for row in made:
        table.add_row(*(Text(_cell_text(cell)) for cell in row))
    return table


def frame_table(title: str, frame: pl.DataFrame, width: int) -> tuple[Table, list[str]]:
    """Return a frame as a table that fits the terminal, and the names of the columns that were dropped.

    Columns without values are dropped first, then those in `MAKE_ROOM`, then columns from the right.
    """
    cells = {name: [_cell_in_line(cell) for cell in frame[name]] for name in frame.columns}
    headers = {name: _folded(name, max(map(len, cells[name]), default=0)) for name in frame.columns}
    widths = {name: max(map(len, [*headers[name].split("\n"), *cells[name]])) + 3 for name in frame.columns}
    shown = frame.columns
    empty = [name for name in shown if frame[name].null_count() == len(frame)]
    for name in [*empty, *MAKE_ROOM, *reversed(frame.columns)]:
        if sum(widths[kept] for kept in shown) + 1 <= width or len(shown) <= 1:
            break
        shown = [kept for kept in shown if kept != name]
    table = Table(title=Text(harmless(title), style="italic"), title_justify="left", header_style="bold")
    for name in shown:
        table.add_column(
            Text(headers[name]), justify="right" if frame[name].dtype.is_numeric() else "left", no_wrap=True
        )
    for row in zip(*(cells[name] for name in shown), strict=True):
        table.add_row(*map(Text, row))
    return table, [name for name in frame.columns if name not in shown]


def _folded(name: str, width: int) -> str:
    """Return a column's header, split into lines if it is wider than its cells. A query may turn values into names."""
    line = shortened(" ".join(harmless(name).split()), LONG_CELL * 2)
    return line if len(line) <= width else line.replace("_", "_\n")


def _cell_in_line(cell: object) -> str:
    """Return a cell as one short line."""
    if cell is None:
        return "–"
    if isinstance(cell, pl.Series):
        cell = cell.to_list()
    if isinstance(cell, list) and len(cell) > SHORT_LIST:
        return f"[{', '.join(_item_text(item) for item in cell[:SHORT_LIST])}, … {len(cell):,} values]"
    line = " ".join(_cell_text(cell).split())
    return line if isinstance(cell, list) else shortened(line, LONG_CELL)


def _cell_text(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.3f}"
    if isinstance(cell, dict):
        return ", ".join(f"{harmless(shortened(name, LONGEST_CELL))} {_item_text(item)}" for name, item in cell.items())
    if isinstance(cell, list):
        shown = ", ".join(_item_text(item) for item in cell[:LONG_LIST])
        return f"[{shown}, … {len(cell):,} values]" if len(cell) > LONG_LIST else f"[{shown}]"
    return harmless(shortened(str(cell), LONGEST_CELL))


def _item_text(item: object) -> str:
    return f"{item:.4g}" if isinstance(item, float) else harmless(shortened(repr(item), LONGEST_CELL))


def trace(
    row: dict[str, object],
    steps: pl.DataFrame,
    scores: pl.DataFrame,
    sample: dict[str, object],
    z: Mapping[int, float] | None = None,
) -> Group:
    """Return a trace with its steps coloured by score.

    Args:
        row: its row of `raw_corpus`.
        steps: its rows of `segmented_steps`.
        scores: its rows of `step_scores`; may be empty.
        sample: facts to list, such as scores and flags from `sample_scores`.
        z: by step_index, distance of the score from the mean of its position in standard deviations; colours the steps
            instead of the score.
    """
    response = str(row["response"])
    by_step = {record["step_index"]: record for record in scores.iter_rows(named=True)}
    parts: list[RenderableType] = [_prompt(row)]
    body = Table.grid(padding=(0, 2))
    headers = ("step", "score", *(() if z is None else ("z",)), "align", "consist", "text")
    for header in headers:
        body.add_column(Text(header, style="dim"), justify="left" if header == "text" else "right")
    body.add_row(*(Text(header, style="dim") for header in headers))
    for span in steps.sort("start").iter_rows(named=True):
        record = by_step.get(span["step_index"], {})
        answer = span["kind"] == "answer"
        name = "answer" if answer else str(span["step_index"])
        score, others = record.get("step_score"), [record.get(key) for key in PARTS]
        adjusted = None if z is None else z.get(span["step_index"])
        style = "bold" if answer else _color(score if z is None else adjusted and adjusted / REACH)
        numbers = [_number(value) for value in (score, *(() if z is None else (adjusted,)), *others)]
        text = response[span["start"] : span["end"]]
        body.add_row(name, *numbers, Text(harmless(text), style=style))
    parts.append(Panel(body, title="response", title_align="left"))
    if steps.is_empty():
        parts.append(Panel(Text(harmless(response)), title="response, without steps", title_align="left"))
    facts = Table.grid(padding=(0, 2))
    for name, value in sample.items():
        facts.add_row(Text(name, style="dim"), Text("–" if value is None else _fact(value)))
    parts.append(Panel(facts, title="facts", title_align="left"))
    return Group(*parts)


def _fact(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else harmless(shortened(str(value), LONGEST_CELL))


def _prompt(row: dict[str, object]) -> Panel:
    turns = json.loads(str(row["messages"]))
    text = Text("\n").join(
        Text.assemble((f"{harmless(turn['role'])}: ", "bold"), harmless(turn_text(turn))) for turn in turns
    )
    return Panel(text, title="prompt", title_align="left")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _color(score: float | None) -> str:
    """Return a colour between red (-1) and green (1), or an empty string without a score."""
    if score is None:
        return ""
    share = (min(1.0, max(-1.0, score)) + 1.0) / 2.0
    red, green, blue = (round(low + share * (high - low)) for low, high in zip(LOW, HIGH, strict=True))
    return f"rgb({red},{green},{blue})"
