"""Texts from outside are shown and not run: in cards, in the UI's metadata, in plots and in the terminal."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
import yaml  # type: ignore[import-untyped]
from rich.console import Console
from typer.testing import CliRunner

from curation_assets import tables
from curation_assets.cli import command
from curation_assets.cli.app import app
from curation_assets.cli.run_summary import show_summary
from curation_assets.definitions import build_definitions
from curation_assets.subsets.stored_tables import TableRequestError, read_stored
from curation_assets.workspace.workspace import Workspace
from curation_resources import plots
from curation_resources.terminal import _cell_text, _fact
from curation_resources.text import LONGEST_CELL, escape_cell, harmless, shortened
from tests.pipeline.workspaces import instance_of, release_folder, release_subset, run
from tests.security.hostile import (
    BENCHMARK,
    BROKEN_FILES,
    FILE_NAMES,
    HELD_OUT,
    HOSTILE,
    IGNORED_FILE,
    MODEL,
    Page,
    active,
    hostile_workspace,
    rendered,
)

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")

RAW = re.compile(r"(?<!\\)\$|[<>]")
"""What begins a formula or a tag, where renderers take more for one than CommonMark does."""


@dataclass(frozen=True)
class Ran:
    """A workspace of hostile texts, what its run printed, and the card of its release."""

    workspace: Workspace
    printed: str
    card: str


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Ran:
    workspace = hostile_workspace(tmp_path_factory.mktemp("hostile"), tiny_model)
    summary = run(workspace)
    stream = io.StringIO()
    show_summary(workspace, summary, Console(file=stream, width=200, markup=False, emoji=False))
    release_subset(workspace)
    return Ran(workspace, stream.getvalue(), (release_folder(workspace) / "README.md").read_text())


def shown_as(text: str) -> str:
    """A text as a cell of Markdown reads."""
    return " ".join(harmless(shortened(text, LONGEST_CELL)).split())


def test_the_texts_went_the_whole_way(ran: Ran) -> None:
    """Else what follows would prove nothing."""
    rows = read_stored(ran.workspace, "raw_corpus").collect()
    assert set(rows["source"]) == set(HOSTILE.values())
    assert set(HOSTILE.values()) <= set(rows["generator"])
    chosen = read_stored(ran.workspace, "subset", subset="best").collect()["sample_id"]
    assert set(rows.filter(pl.col("sample_id").is_in(chosen.implode()))["source"]) == set(HOSTILE.values())
    assert {*FILE_NAMES, *BROKEN_FILES} < set(read_stored(ran.workspace, "score_manifest").collect()["path"])
    assert len(read_stored(ran.workspace, "rejected_rows").collect()) > 3 * len(HOSTILE)
    assert read_stored(ran.workspace, "sample_quality").collect()["benchmarks"].list.len().sum()


# The card


def test_a_card_shows_texts_as_texts(ran: Ran) -> None:
    header, _, body = ran.card.removeprefix("---\n").partition("\n---\n")
    # The release's own plots, and the commands that reproduce it.
    found = list(active(body))
    assert sum(one.startswith("img {'src': 'plots/") for one in found) == 3
    assert [one for one in found if not one.startswith(("img {'src': 'plots/", "pre", "code"))] == []
    rows = Page(rendered(body)).rows
    cells = [row[0] for row in rows]
    assert [cell for cell in map(shown_as, HOSTILE.values()) if cell not in cells] == []
    # Facts, sources and the funnel.
    assert {len(row) for row in rows} == {2, 3, 5}
    assert shown_as(MODEL) in [row[1] for row in rows]
    assert not RAW.search(body)
    assert not OBEYED.search(ran.card)
    assert header.count("---") == 0


def test_the_header_of_a_card_says_what_we_say(ran: Ran) -> None:
    header = ran.card.split("\n---\n")[0].removeprefix("---\n")
    read = yaml.safe_load(header)
    assert re.fullmatch(r"best-1-[0-9a-f]{12}", read["configs"][0].pop("config_name"))
    assert read == {
        "pretty_name": "best, release 1",
        "task_categories": ["text-generation"],
        "size_categories": ["n<1K"],
        "configs": [{"data_files": [{"split": "train", "path": "data/train.parquet"}]}],
        "tags": ["reasoning", "curated", "grace"],
    }


# The UI


def markdown_values(workspace: Workspace) -> Iterator[tuple[str, str]]:
    """All that the UI renders as Markdown: metadata of events and checks, and what assets say of themselves."""
    instance = instance_of(workspace)
    for made in instance.get_runs():
        for entry in instance.all_logs(made.run_id):
            event = entry.dagster_event
            if event is None:
                continue
            parts = [event.event_specific_data, *vars_of(event.event_specific_data)]
            for part in parts:
                for name, value in (getattr(part, "metadata", None) or {}).items():
                    if isinstance(value, dg.MarkdownMetadataValue):
                        yield f"{event.asset_key} {name}", str(value.value)
                if isinstance(text := getattr(part, "description", None), str):
                    yield f"{event.asset_key} description", text
    graph = build_definitions(workspace).resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        yield key.to_user_string(), str(graph.get(key).description)


def vars_of(data: object) -> list[object]:
    """The parts of an event: a materialization or a check is one of them."""
    return [getattr(data, name, None) for name in ("materialization", "asset_observation")]


def test_the_ui_shows_texts_as_texts(ran: Ran) -> None:
    values = list(markdown_values(ran.workspace))
    assert [f"{where}: {what}" for where, text in values for what in active(text)] == []
    assert [where for where, text in values if OBEYED.search(text) or RAW.search(text)] == []
    cells = {cell for _, text in values for row in Page(rendered(text)).rows for cell in row}
    for text in (*HOSTILE.values(), *FILE_NAMES):
        assert shown_as(text) in cells
    assert shown_as(BENCHMARK.split(".")[0]) in cells
    described = dict(values)["validation/held"]
    assert shown_as(HELD_OUT) in Page(f"<tr><td>{rendered(described)}</td></tr>").rows[0][0]


# The terminal


def curate(ran: Ran, *words: str, code: int = 0) -> str:
    """What a command prints, which a terminal must be able to take."""
    done = CliRunner().invoke(app, [*words, "--config", str(ran.workspace.config_file)])
    assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
    assert not OBEYED.search(done.output), words
    return done.output


def test_what_a_run_prints_is_not_obeyed(ran: Ran) -> None:
    assert not OBEYED.search(ran.printed)
    assert "\\x1b[2J<b>:x:[red]\\n.txt" in ran.printed
    assert IGNORED_FILE not in ran.printed


def test_every_table_is_shown_and_not_obeyed(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.console, "_width", 2000)
    shown = {}
    for name in tables.ALL_TABLES:
        # Of some tables, nothing is made here.
        with contextlib.suppress(TableRequestError):
            read_stored(ran.workspace, name, subset="best")
            shown[name] = curate(ran, "table", name, *(["--subset", "best"] if name == "subset" else []))
    assert len(shown) > 10
    for name in ("raw_corpus", "rejected_rows", "sample_scores", "subset_comparison", "preference", "score_manifest"):
        assert "<" in shown[name], name


def test_what_a_query_gives_is_shown_and_not_obeyed(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.console, "_width", 400)
    text = curate(ran, "sql", "select distinct source from raw_corpus order by source")
    for begin in (
        "<script>window.ran",
        "[red]x[/red]",
        "\\x1b[2J\\x1b[31mred",
        "\\u202egnp.exe\\u202c",
        "{{ 7 * 7 }} {0}",
    ):
        assert begin in text
    curate(
        ran,
        "sql",
        "select {'a\x1b[2J': source, 'b': [response, extra, source, prompt_id]} as \"c\x1b[2J\" from raw_corpus",
    )
    curate(ran, "sql", "select map([source], [messages]) as m, encode(source) as b, shard from raw_corpus")
    for wrong in ("select source::int from raw_corpus", "select '\x1b[2J", 'select "\x1b[2J:x:" from raw_corpus'):
        assert "[2J" in curate(ran, "sql", wrong, code=1) or "source" in wrong
    assert ":x:" in curate(ran, "sql", 'select "\x1b[2J:x:" from raw_corpus', code=1)


def test_traces_are_shown_and_not_obeyed(ran: Ran) -> None:
    rows = read_stored(ran.workspace, "raw_corpus").unique("source").collect()
    for source, sample_id in rows.select("source", "sample_id").iter_rows():
        text = curate(ran, "show", sample_id)
        if source == HOSTILE["rich"]:
            # The console folds lines, so that only what is short is whole.
            assert "[red]x[/red]" in text
            assert ":warning:" in text


def test_other_commands_are_not_obeyed_either(ran: Ran, tmp_path: Path) -> None:
    folder = ran.workspace.folder
    sample_id = read_stored(ran.workspace, "raw_corpus").collect()["sample_id"][0]
    curate(ran, "doctor", code=1)
    assert "window.ran" in curate(ran, "select", "best", "--budget", "50%")
    curate(ran, "select", "best", "--set", "\x1b[2J=1", code=1)
    curate(ran, "release", "\x1b[2J", code=1)
    curate(ran, "table", "\x1b[2J", code=1)
    curate(ran, "table", "raw_corpus", "--columns", "\x1b[2J:x:", code=1)
    curate(ran, "show", "\x1b[2J\n", code=1)
    curate(ran, "gc", "--dry-run")
    done = CliRunner().invoke(
        app, ["init", str(folder / "landing"), "--model", MODEL, "--to", str(tmp_path / "c.yaml")]
    )
    assert (done.exit_code, OBEYED.search(done.output)) == (0, None)
    (tmp_path / "d.yaml").write_text(
        f"corpus: {{landing: l}}\n{HOSTILE['terminal']!r}: 1\ntargets: [{{name: ':x:[red]'}}]\n"
    )
    done = CliRunner().invoke(app, ["plan", "--config", str(tmp_path / "d.yaml")])
    assert (done.exit_code, OBEYED.search(done.output)) == (1, None)
    assert ":x:[red]" in done.output
    # Last, as it changes what is there.
    shutil.copytree(folder, tmp_path / "copy")
    there = Ran(Workspace.load(tmp_path / "copy" / "curation.yaml"), "", "")
    assert "still contained in" in curate(there, "purge", sample_id, "--yes")


def test_a_plan_names_files_in_a_line_each(tmp_path: Path, tiny_model: Path) -> None:
    workspace = hostile_workspace(tmp_path, tiny_model)
    lines = curate(Ran(workspace, "", ""), "plan", "--no-probe").splitlines()
    named = [line for line in lines if line.startswith("cannot be read: ")]
    assert [line.partition(".parquet: ")[0] for line in named if ".parquet" in line] == [
        "cannot be read: <b>\\x1b[2J|\\nerror: [m](javascript:1) :x: _x_"
    ]
    assert not [line for line in lines if line.startswith("error")]


def test_long_cells_are_shown_in_part() -> None:
    long = "x" * 10**6
    for cell in (long, [long] * 9, {long: long}, [[long]], {"a": {"b": long}}):
        assert 100 < len(_cell_text(cell)) < 10 * LONGEST_CELL
        assert 100 < len(_fact(cell)) <= LONGEST_CELL
    assert len(escape_cell(long)) == LONGEST_CELL
    assert len(escape_cell("\x1b" * 10**7)) < 10 * LONGEST_CELL


# Plots


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of all plots from now on, as they are drawn."""
    from matplotlib.backends.backend_agg import RendererAgg

    found: list[str] = []
    draw: Callable[..., None] = RendererAgg.draw_text

    def noted(self: RendererAgg, gc: object, x: float, y: float, s: str, *args: object, **kwargs: object) -> None:
        found.append(s)
        draw(self, gc, x, y, s, *args, **kwargs)

    monkeypatch.setattr(RendererAgg, "draw_text", noted)
    monkeypatch.setattr(RendererAgg, "draw_mathtext", lambda *_: pytest.fail("drawn as a formula"))
    return found


@pytest.mark.usefixtures("fresh_plots")
@pytest.mark.filterwarnings("ignore:Glyph", "ignore:constrained_layout")
def test_plots_show_texts_as_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = drawn(monkeypatch)
    texts = list(HOSTILE.values())
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    values = [[0.5]] * len(texts)
    made = [
        plots.heat_map(values, texts, ["a"], "t"),
        plots.heat_map([[0.5] * len(texts)], ["a"], texts, "t", "share"),
        plots.stacked_bars({text: {text: 1.0} for text in texts}, "t", "x"),
        *(plots.histogram({one: [0.5], two: [1.0]}, one, two) for one, two in pairs),
        *(plots.curve([0.5], one, two, one) for one, two in pairs),
        *(plots.scatter([0.5], [0.5], two, one, two) for one, two in pairs),
    ]
    for text in texts:
        label = " ".join(harmless(shortened(text, plots.LONGEST_LABEL)).split())
        assert sum(label in shown for shown in found) >= 8, label
    assert not [text for text in found if OBEYED.search(text) or len(text) > 10 * plots.LONGEST_LABEL]
    assert [what for markdown in made for what in active(markdown)] == []


@pytest.mark.usefixtures("fresh_plots")
def test_bars_whose_names_are_cut_alike_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    found = drawn(monkeypatch)
    plots.stacked_bars({"s" * 70 + end: {"a": 1.0} for end in "xyz"}, "t", "x")
    assert found.count("s" * 59 + "…") == 3


# A browser


def test_a_browser_runs_nothing_of_it(ran: Ran) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on the PATH: install it (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    tables_shown = [text for _, text in markdown_values(ran.workspace)]
    body = rendered("\n\n".join([ran.card.split("\n---\n", 1)[1], *tables_shown]))
    asked: list[str] = []
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.set_content(f"<!doctype html><body>{body}</body>")
        page.wait_for_timeout(200)
        assert page.evaluate("[window.ran === undefined, document.links.length, document.scripts.length]") == [
            True,
            0,
            0,
        ]
        # That it would run here if it were let through.
        page.set_content(f"<!doctype html><body>{HOSTILE['image']}{HOSTILE['script']}</body>")
        page.wait_for_timeout(200)
        assert page.evaluate("window.ran") == 1
        browser.close()
    assert [url for url in asked if not url.startswith("data:image/png;base64,")][:-1] == []
