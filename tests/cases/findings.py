"""Collect what a case checks, and where the product differs from it."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from curation_assets.config.corpus_settings import Segmentation
from curation_assets.corpus.reading import ShardRows
from curation_assets.steps.segmentation import Segments, segment
from tests.corpus.helpers import read

LONGEST = 160
"""Characters of a value that a difference shows."""


@dataclass
class Findings:
    """The checks of one case: their number, and a line for each that failed."""

    checks: int = 0
    differences: list[str] = field(default_factory=list)

    def equal(self, what: str, found: object, expected: object) -> None:
        """Check that two values are equal."""
        self.holds(f"{what}: expected {_short(expected)}, found {_short(found)}", found == expected)

    def contains(self, what: str, text: str | None, *words: str) -> None:
        """Check that a text contains all of these words."""
        missing = [word for word in words if word not in (text or "")]
        self.holds(f"{what}: expected {missing}, found {_short(text)}", not missing)

    def holds(self, difference: str, condition: bool) -> None:
        """Check a condition; `difference` describes its failure."""
        self.checks += 1
        if not condition:
            self.differences.append(difference)

    def file(
        self,
        path: Path,
        responses: Mapping[int | tuple[int, int], str] | Sequence[str],
        refused: Mapping[int, tuple[str, str]] | None = None,
        **settings: Any,
    ) -> ShardRows:
        """Read a file; check its responses by row (and candidate), and the reasons and words of its refusals.

        Args:
            path: the file.
            responses: the responses by row, or by row and candidate; a list is of rows 0, 1, ...
            refused: reason, and words of its detail, by row.
            settings: the section `corpus`.
        """
        rows = read(path, path.name, **settings)
        by_row = responses if isinstance(responses, Mapping) else dict(enumerate(responses))
        expected = {key if isinstance(key, tuple) else (key, 0): text for key, text in by_row.items()}
        found = {(row, candidate): text for row, candidate, text in rows.accepted.select(*PLACE, "response").rows()}
        for place in sorted(expected.keys() | found.keys()):
            self.equal(f"{path.name} row {place}", found.get(place), expected.get(place))
        reasons = {row: (reason, detail) for row, reason, detail in rows.rejected.select("row", *REFUSAL).rows()}
        refused = refused or {}
        for row in sorted(reasons.keys() | refused.keys()):
            reason, detail = reasons.get(row, (None, None))
            wanted, words = refused.get(row, (None, ""))
            self.equal(f"{path.name} row {row}, reason", reason, wanted)
            self.contains(f"{path.name} row {row}, detail", detail, words)
        return rows


PLACE = ("row", "candidate")
REFUSAL = ("reason", "detail")


@dataclass(frozen=True)
class Case:
    """A folder of inputs, what is checked of it, and the check."""

    name: str
    summary: str
    check: Callable[[Path, Findings], None]

    def run(self, folder: Path) -> Findings:
        """Check the case; an exception is a difference."""
        found = Findings()
        if not (folder / self.name).is_dir():
            found.holds("the folder is missing", condition=False)
            return found
        try:
            self.check(folder / self.name, found)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            found.holds(
                f"{type(error).__name__}: {_short(str(error))} ({Path(place.filename).name}:{place.lineno})", False
            )
        return found


def cut(rows: ShardRows) -> dict[int, Segments]:
    """Return the steps and the answer of each row's first response."""
    settings = Segmentation()
    chosen = rows.accepted.select("row", "response", "steps", "answer").rows()
    return {row: segment(response, settings, steps, answer) for row, response, steps, answer in chosen}


def texts_of(rows: ShardRows, row: int) -> tuple[list[str], str | None]:
    """Return the texts of a row's steps and of its answer."""
    response, found = _sample(rows, row)["response"], cut(rows)[row]
    steps = [response[start:end] for start, end in found.steps]
    return steps, None if found.answer is None else response[found.answer.start : found.answer.end]


def turns_of(rows: ShardRows, row: int) -> list[dict[str, object]]:
    """Return the prompt's turns of a row."""
    turns: list[dict[str, object]] = json.loads(_sample(rows, row)["messages"])
    return turns


def extra_of(rows: ShardRows, row: int) -> dict[str, object]:
    """Return the fields of a row that its format does not use."""
    extra: dict[str, object] = json.loads(_sample(rows, row)["extra"])
    return extra


def thought(reasoning: str, answer: str = "") -> str:
    """Return reasoning and answer as one response."""
    return f"<think>\n{reasoning}\n</think>" + (f"\n\n{answer}" if answer else "")


def _sample(rows: ShardRows, row: int) -> dict[str, Any]:
    """Return the first sample of a row."""
    return rows.accepted.row(by_predicate=(pl.col("row") == row) & (pl.col("candidate") == 0), named=True)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
