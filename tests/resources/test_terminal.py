"""What is shown: text from outside is shown and never obeyed, and plots are drawn of whatever there is."""

from __future__ import annotations

import base64
import html
import io
import json
import logging
import re

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from curation_assets import tables
from curation_resources import progress
from curation_resources.plots import curve, histogram, scatter
from curation_resources.progress import track
from curation_resources.terminal import progress_bars, simple_table, trace
from curation_resources.text import escape_cell, harmless

ESCAPE = "\x1b"
HOSTILE = "[red]x[/red] \x1b[2J\x1b]0;title\x07 \x9b31m a\rb \u202egnp.exe\u202c [/nothing]"


def shown(renderable: object, colour: bool = False) -> str:
    """What reaches a terminal."""
    stream = io.StringIO()
    console = Console(file=stream, width=200, force_terminal=colour, color_system="truecolor" if colour else None)
    console.print(renderable)
    return stream.getvalue()


def test_numbers_in_lists_have_four_digits() -> None:
    cells = [[0.123456789, 1234567.0, float("nan"), None, 3], ["a\x1bb"], [], [0.1 + 0.2] * 7]
    text = shown(simple_table("t", ["a", "b", "c", "d"], [cells]))
    assert "[0.1235, 1.235e+06, nan, None, 3]" in text
    assert "['a\\x1bb']" in text
    assert "[]" in text
    assert "[0.3, 0.3, 0.3, 0.3, 0.3, 0.3, … 7 values]" in text


def show_trace(text: str, score: float | None = 0.5, colour: bool = False, z: float | None = None) -> str:
    row: dict[str, object] = {"response": text, "messages": json.dumps([{"role": "user", "content": text}])}
    spans = {"sample_id": "s", "strategy": "lines", "merged": False}
    middle = len(text) // 2
    steps = pl.DataFrame(
        [
            {"step_index": 1, "kind": "step", "start": 0, "end": middle} | spans,
            {"step_index": 0, "kind": "answer", "start": middle, "end": len(text)} | spans,
        ]
    )
    scores = pl.DataFrame(
        {"step_index": [1], "step_score": [score], "answer_alignment": [score], "trajectory_consistency": [None]},
        schema_overrides={"step_score": pl.Float64, "answer_alignment": pl.Float64},
    )
    facts: dict[str, object] = {"flags": [text], "note": text, "grace": None}
    return shown(trace(row, steps, scores, facts, None if z is None else {1: z}), colour)


def test_markup_in_a_trace_is_shown_as_it_is() -> None:
    found = show_trace("[red]x[/red] [/nothing] [bold")
    assert found.count("[red]x[/red]") >= 2
    assert "[bold" in found


def test_control_characters_in_a_trace_are_shown_and_not_obeyed() -> None:
    found = show_trace(HOSTILE)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", found)
    for visible in (r"\x1b[2J", r"\x1b]0;title\x07", r"\x9b31m", r"a\rb", r"\u202egnp.exe"):
        assert visible in found


def test_the_only_escapes_are_our_own_colours() -> None:
    found = show_trace("first half" + HOSTILE, colour=True)
    assert ESCAPE in found
    assert not re.sub(r"\x1b\[[0-9;]*m", "", found).count(ESCAPE)


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=60))
@example(HOSTILE)
@example("\r\n\r\n")
@example("\ud800")
def test_any_trace_can_be_shown(text: str) -> None:
    found = show_trace(text.encode("utf-8", "replace").decode())
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", found)


def test_plain_text_is_left_alone() -> None:
    for text in ("two\nlines\tand tabs", "größe 题 😀 × \u200d", "", "\\x1b"):
        assert harmless(text) == text
    assert harmless("a\r\nb") == "a\nb"
    assert harmless(None) == "None"
    assert harmless("\ud800") == "\\ud800"


def test_scores_are_shown_and_coloured_from_red_to_green() -> None:
    assert "+0.50" in show_trace("two and two")
    colours = []
    for score in (-1.0, -5.0, 0.0, 1.0, 5.0):
        (colour,) = set(re.findall(r"38;2;(\d+;\d+;\d+)", show_trace("two and two", score, colour=True)))
        colours.append(colour)
    assert colours[0] == colours[1] == "190;60;60"
    assert colours[3] == colours[4] == "40;150;90"
    assert colours[2] not in {colours[0], colours[3]}
    assert "38;2;" not in show_trace("two and two", None, colour=True)


def test_adjusted_scores_are_shown_beside_and_give_the_colour() -> None:
    found = show_trace("two and two", 0.5, z=-1.25)
    assert re.search(r"1 +\+0\.50 +-1\.25 +\+0\.50", found)
    assert re.search(r"score +z +align", found)
    colours = []
    for z in (-2.0, -9.0, 0.0, 2.0, 9.0):
        (colour,) = set(re.findall(r"38;2;(\d+;\d+;\d+)", show_trace("two and two", 0.5, colour=True, z=z)))
        colours.append(colour)
    assert colours[0] == colours[1] == "190;60;60"
    assert colours[3] == colours[4] == "40;150;90"
    assert colours[2] not in {colours[0], colours[3]}


def test_a_trace_without_steps_is_shown_whole() -> None:
    row: dict[str, object] = {"response": "[b]all of it[/b]", "messages": "[]"}
    found = shown(trace(row, tables.SEGMENTED_STEPS.empty(), tables.STEP_SCORES.empty(), {}))
    assert "[b]all of it[/b]" in found
    assert "response, without steps" in found


def test_cells_of_tables_are_harmless_too() -> None:
    found = shown(simple_table("title", ("name", "count", "share"), [(HOSTILE, 3, 0.12345), (None, None, None)]))
    assert "[red]x[/red]" in found
    assert ESCAPE not in found
    assert "0.123" in found
    assert "–" in found
    assert "title" in shown(simple_table("title", ("name",), []))


# Progress


def test_bars_move_with_the_work_and_stop_with_it() -> None:
    stream = io.StringIO()
    with progress_bars(Console(file=stream, width=120, force_terminal=True)) as bars:
        with track("measuring", 10) as advance:
            advance(3)
            advance(4)
            assert (bars.tasks[0].description, bars.tasks[0].completed) == ("measuring", 7)
        assert bars.tasks[0].stop_time is not None
    assert "7/10" in stream.getvalue()


def test_without_a_display_progress_is_logged_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "curation"):
        with track("quick", 2) as advance:
            advance(2)
        assert not caplog.messages
        monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 0.0)
        with track("slow", 4) as advance:
            advance(1)
            advance(2)
    assert [message.split(",")[0] for message in caplog.messages] == ["slow: 1 of 4", "slow: 3 of 4"]


# Plots


def picture(markdown: str) -> bytes:
    """The PNG in a Markdown picture."""
    found = re.fullmatch(r"!\[[^\]\n]*\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", markdown)
    assert found is not None
    data = base64.b64decode(found[1], validate=True)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return data


SPANS = [
    [],
    [0.0],
    [0.5],
    [3.0] * 50,
    [1e6] * 3,
    [-1e12] * 3,
    [1e6, 1e6 + 1e-9],
    [1e-300, 2e-300],
    [-1.0, 0.0, 1.0],
    [1e300, -1e300],
]


@pytest.mark.usefixtures("fresh_plots")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", SPANS, ids=str)
def test_plots_of_whatever_there_is(values: list[float]) -> None:
    picture(histogram({"pool": values, "selected": values[:1]}, "grace: pool and subset", "grace"))
    picture(histogram({"samples": values}, "grace", "grace"))
    picture(curve(values, "loss", "step", "loss"))
    picture(scatter(values, values, "grace by length", "tokens", "grace"))


@pytest.mark.usefixtures("fresh_plots")
@pytest.mark.filterwarnings("error")
def test_plots_of_nothing_at_all_and_of_more_groups_than_colours() -> None:
    picture(histogram({}, "nothing", "x"))
    picture(histogram({f"group{number}": [float(number)] for number in range(9)}, "many", "x"))


@pytest.mark.usefixtures("fresh_plots")
def test_different_values_give_different_pictures() -> None:
    first = picture(histogram({"a": [0.1, 0.2]}, "t", "x"))
    assert picture(histogram({"a": [0.1, 0.2]}, "t", "x")) == first
    assert picture(histogram({"a": [0.1, 0.9]}, "t", "x")) != first


# Cells of Markdown tables


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("a & b &lt;", "a &amp; b &amp;lt;"),
        ("a|b", "a&#124;b"),
        ("[click](http://x)", r"\[click\](http://x)"),
        (r"\[click\](http://x)", r"&#92;\[click&#92;\](http://x)"),
        ("`code`", "&#96;code&#96;"),
        ("*a* _b_ ~~c~~", r"\*a\* \_b\_ \~\~c\~\~"),
        ("two\nlines\r\n\tand  more ", "two lines and more"),
        (None, "–"),
        (0.123456, "0.1235"),
        (12, "12"),
        ("", ""),
    ],
)
def test_a_cell_is_shown_as_it_is(value: object, cell: str) -> None:
    assert escape_cell(value) == cell


@given(st.text(alphabet=st.sampled_from("\\[]()<>&|`*_~!a \n"), max_size=30))
def test_a_cell_reads_as_its_text_and_holds_nothing_active(text: str) -> None:
    cell = escape_cell(text)
    assert html.unescape(re.sub(r"\\([\[\]*_~])", r"\1", cell)) == " ".join(text.split())
    assert not re.search(r"[<>|`\n]", cell)
    assert not re.search(r"(?<!\\)[\[\]*_~]", cell)
    assert not re.search(r"\\(?![\[\]*_~])", cell)
