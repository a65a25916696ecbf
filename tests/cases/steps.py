"""Cases of steps and answers: styles of writing, and scripts without spaces."""

from __future__ import annotations

from pathlib import Path

from tests.cases.findings import Case, Findings, cut, texts_of, turns_of
from tests.cases.runs import duplicates_of_cjk
from tests.corpus.helpers import read

STYLES: dict[str, tuple[str | None, int]] = {
    "metamath": ("12", 2),
    "shepherd": ("13", 2),
    "the final answer is": ("$7$", 2),
    "boxed nested": ("\\frac{1}{2}", 1),
    "boxed space cmd": ("5", 1),
    "fbox": ("5", 1),
    "two boxes": ("4", 2),
    "final answer md": ("5", 2),
    "heading answer": ("42", 2),
    "mcq": ("(C)", 2),
    "mcq text": ("C", 1),
    "mcq boxed text": ("\\text{(B)}", 2),
    "mcq list A:": ("B", 2),
    "zh label": ("12", 2),
    "zh sentence": ("12", 1),
    "zh steps": ("12", 3),
    "zh di yi bu": ("13", 2),
    "ja": ("12", 2),
    "ar": ("12", 2),
    "hi": ("12", 2),
    "gsm8k comma": ("1,234", 2),
    "answer tags": ("7", 2),
    "eos in text": ("7", 2),
    "eos2 in text": ("7", 2),
    "no open think": ("It is seven.", 1),
    "unclosed think": (None, 2),
    "think in text": ("It is seven.", 3),
    "empty think": ("It is seven since three and four make it.", 0),
    "two thinks": ("Part two is 7.", 2),
    "code blank": ("f(3) is 3", 3),
    "code hashes": (None, 1),
    "code label": (None, 2),
    "md steps": (None, 3),
    "bold steps": ("3", 2),
    "step one": (None, 3),
    "numbered": ("3", 3),
    "numbered nested": (None, 2),
    "latex align": ("c", 2),
    "table": ("3", 2),
    "answer empty": (None, 2),
    "answer not in text": (None, 2),
    "answer word in text": ("a story. It was long.", 0),
    "unit": ("5 m.", 2),
    "frac vs": ("\\dfrac{1}{2}", 1),
    "answer with dollar": ("\\frac{1}{2}", 1),
    "negative": ("-5", 2),
    "percent": ("50", 2),
    "crlf": ("2", 2),
    "harmony": ("It is 4.", 1),
    "reflection tags": ("4", 2),
    "seed think": ("It is 4.", 2),
    "magistral": ("It is 4.", 2),
}
"""Answer, and number of steps, of each style, which is the row's prompt."""

MARKERS = ("答案", "最终", "answer is", "####", "</", "[/THINK]", "<|")
"""Texts of markers that no step ends with."""

FENCE = "```"


def answers_and_steps(folder: Path, found: Findings) -> None:
    """The answer of every style, and its number of steps; code blocks are whole, and markers belong to no step."""
    path = folder / "landing" / "a.jsonl"
    rows = read(path, path.name)
    styles = {str(turns_of(rows, row)[0]["content"]): row for row in rows.accepted["row"]}
    found.equal("styles", sorted(styles), sorted(STYLES))
    for style, row in styles.items():
        steps, answer = texts_of(rows, row)
        expected, count = STYLES.get(style, (None, 0))
        found.equal(f"{style}, answer", answer, expected)
        found.equal(f"{style}, steps", len(steps), count)
        for step in steps:
            found.holds(f"{style}: a fence is cut in {step!r}", step.count(FENCE) % 2 == 0)
            found.holds(f"{style}: a marker is part of {step!r}", not step.endswith(MARKERS))


TRACES: tuple[tuple[int, str, str], ...] = (
    (3, "5", "paragraphs"),
    (2, "40", "paragraphs"),
    (3, "4", "markers"),
    (2, "9個", "paragraphs"),
    (2, "เก้า", "paragraphs"),
    (3, "5", "paragraphs"),
)
"""Number of steps, answer and strategy of each row."""


def cjk(folder: Path, found: Findings) -> None:
    """Chinese, Japanese and Thai traces are cut like others."""
    path = folder / "landing" / "zh.jsonl"
    rows = read(path, path.name)
    for row, (count, expected, strategy) in enumerate(TRACES):
        steps, answer = texts_of(rows, row)
        found.equal(f"row {row}, answer", answer, expected)
        found.equal(f"row {row}, steps", len(steps), count)
        found.equal(f"row {row}, strategy", cut(rows)[row].strategy, strategy)
        found.holds(f"row {row}: a marker is part of {steps[-1]!r}", not steps[-1].endswith(MARKERS))
    duplicates_of_cjk(folder, found)


STEPS = (
    Case("15-answers-and-steps", "answers and steps of many styles", answers_and_steps),
    Case("16-cjk", "steps and answers without spaces", cjk),
)
