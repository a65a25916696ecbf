"""Texts that are made to be run, and a workspace that has them wherever something comes from outside."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from curation_assets.workspace.workspace import Workspace
from tests.pipeline.workspaces import write_shard

HOSTILE: dict[str, str] = {
    "script": "<script>window.ran = 1</script>",
    "image": "<img src=x onerror='window.ran = 1'>",
    "link": "[click](javascript:window.ran=1)",
    "pointed": "<javascript:window.ran=1> <https://evil.example>",
    "reference": "[a][b]\n\n[b]: javascript:window.ran=1",
    "picture": "![a](http://evil.example/a.png)",
    "cells": "a | b || c",
    "lines": "x |\n\n# heading\r\n\n| a |\n| --- |\u2028\u2029\x85\x0b\x0c",
    "header": "---\nconfigs: []\nlicense: mit\n---",
    "yaml": "x: [y]\n- !!python/object/apply:os.system ['touch ran'] # &a *a",
    "code": "`a` ``b\n```\nc",
    "weight": "**a** __b__ ~~c~~ \\* \\` \\",
    "table": "</td></tr></table></body><h1>x <!-- <![CDATA[ <?php",
    "entities": "&lt;b&gt; &#60;i&#62; &amp;lt;",
    "terminal": "\x1b[2J\x1b[31mred \x1b]0;title\x07 \x1b]8;;http://evil.example\x07link\x1b]8;;\x07 \x9b1m\x08\r\x7f",
    "order": "\u202egnp.exe\u202c \u2066x\u2069 \u200f\u061c",
    "rich": "[red]x[/red] [/nothing] [link=http://evil.example]y[/link] :warning: :x:",
    "template": "{{ 7 * 7 }} {0} {task.description} ${HOME} $\\frac{1}{0}$ $a %s",
    "hidden": "_nolegend_",
    "sql": "'; drop table sample_scores; -- \"",
    "sheet": "=cmd|' /C calc'!A0",
    "long": "<b>" * 2000,
}

FILE_NAMES = [
    "<script>window.ran = 1<script>.jsonl",
    "<img src=x onerror='window.ran = 1'>|[m](javascript:window.ran=1)`.jsonl",
    "\x1b[2J\x1b]0;title\x07 \u202egnp [red] :warning: $x$.jsonl",
    "a\n\n---\nlicense: mit\n---\n# x.jsonl",
]
BROKEN_FILES = ["<b>\x1b[2J|\nerror: [m](javascript:1) :x: _x_.parquet", "[empty](javascript:1)\u202e.jsonl"]
IGNORED_FILE = "\x1b[2J<b>:x:[red]\n.txt"
MODEL = "<b>|[model](javascript:window.ran=1) `m` $x$ \x1b[2J\u202e:x:"
HELD_OUT = "held <i>[v](javascript:1)`.jsonl"
BENCHMARK = "bench <i>|[b](javascript:1)`_x_.jsonl"

CONFIG = """\
corpus:
  landing: ./landing
  filters: {{contamination: {{files: ["./benchmarks/*.jsonl"], share: 1.0}}}}
warehouse: ./warehouse
targets:
  - name: tiny
    model: {model}
    warmup: none
    signals: [step_gradients, likelihoods, embeddings_position_weighted]
validation: [{{name: held, path: {held}}}]
scores:
  - {{name: grace, target: tiny, method: grace, min_steps: 1}}
  - {{name: near, target: tiny, method: rds_plus, validation: held}}
subsets:
  - name: best
    score: grace
    budget: {{fraction: 0.9}}
    stratify: [source]
    filters: {{sources: {sources}}}
  - {{name: other, score: grace, budget: {{fraction: 0.9}}, selector: {{kind: top}}}}
engine: {{device: cpu}}
"""


def hostile_rows() -> list[dict[str, Any]]:
    """Two responses to each of several prompts, with a hostile text as everything that a row may say."""
    made = []
    for name, text in HOSTILE.items():
        said = text if len(text) < 200 else text[:60]  # what a model of this size reads
        steps = [f"Step {number}: {said} and {number} more" for number in (1, 2, 3)]
        for writer in ("a", text):
            response = "\n".join([*steps, f"By {writer[:100]}.", f"Answer: {said}"])
            row = {"prompt": f"{name}: {said}", "response": response, "source": text, "generator": writer}
            made.append(row | {"domain": text, "answer": said, "id": text, text[:40]: text})
    return made


def hostile_workspace(folder: Path, model: Path) -> Workspace:
    """A workspace whose rows, files, model, validation set and benchmark have hostile texts and names."""
    shutil.copytree(model, folder / MODEL)
    rows = hostile_rows()
    for number, name in enumerate(FILE_NAMES):
        write_shard(folder / "landing" / name, rows[number :: len(FILE_NAMES)])
    for name in (*BROKEN_FILES, IGNORED_FILE):
        path = folder / "landing" / name
        path.write_text("" if name.endswith(".jsonl") else "not Parquet \x1b[2J<script>")
        os.utime(path, (1e9, 1e9))
    bad = [{"prompt": text, "response": 5, text[:40]: text} for text in HOSTILE.values()]
    roles = [{"messages": [{"role": text, "content": text}]} for text in HOSTILE.values()]
    images = [{"prompt": "q", "response": "r", "image": text} for text in HOSTILE.values()]
    write_shard(folder / "landing" / "rejected.jsonl", [*bad, *roles, *images])
    write_shard(folder / HELD_OUT, [row | {"source": "held"} for row in rows[:4]])
    # Shared in part: a benchmark that held them whole would leave all rows out.
    items = [{"question": f"{row['response']} and more that no row of the corpus says anywhere"} for row in rows]
    write_shard(folder / "benchmarks" / BENCHMARK, items)
    text = CONFIG.format(
        model=json.dumps(MODEL), held=json.dumps(HELD_OUT), sources=json.dumps([*HOSTILE.values(), "absent\x1b[2J"])
    )
    (folder / "curation.yaml").write_text(text)
    return Workspace.load(folder / "curation.yaml")


# What Markdown comes to


OUR_TAGS = {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "code", "img"}


def rendered(markdown: str) -> str:
    """Markdown as HTML by a renderer that lets through all that it may: raw HTML, and any address."""
    renderer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    renderer.validateLink = lambda _: True  # type: ignore[method-assign, assignment]
    return str(renderer.render(markdown))


class Page(HTMLParser):
    """What a page holds: its tags with their attributes, the rows of its tables, and comments and the like."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.odd: list[str] = []
        self._in_cell = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Count a tag; a cell begins empty."""
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        """A cell ends."""
        self._in_cell = self._in_cell and tag not in {"td", "th"}

    def handle_data(self, data: str) -> None:
        """Text of a cell, or not."""
        if self._in_cell:
            self.rows[-1][-1] += data

    def handle_comment(self, data: str) -> None:
        """Something that we never write."""
        self.odd.append(data)

    def handle_decl(self, decl: str) -> None:
        """Nor this."""
        self.odd.append(decl)

    def handle_pi(self, data: str) -> None:
        """Nor this."""
        self.odd.append(data)

    def unknown_decl(self, data: str) -> None:
        """Nor this."""
        self.odd.append(data)


def active(markdown: str) -> Iterator[str]:
    """What in a Markdown text is more than our own headings, tables, lists and plots."""
    page = Page(rendered(markdown))
    for tag, attributes in page.tags:
        plot = tag == "img" and str(attributes.get("src")).startswith("data:image/png;base64,")
        allowed = {"style"} if tag in {"th", "td"} else {"src", "alt"} if plot else set()
        if tag not in OUR_TAGS or (tag == "img" and not plot) or attributes.keys() - allowed:
            yield f"{tag} {attributes}"[:200]
    yield from page.odd
