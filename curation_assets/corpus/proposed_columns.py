"""Propose `corpus.columns` for rows that no format matches, from the names and types of their fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from curation_assets.config.corpus_settings import Columns
from curation_assets.corpus.fields import Row, lookup
from curation_assets.corpus.row_parts import PROMPT_NAMES, SHORT_ANSWER_CHARS

PROMPTS = (*PROMPT_NAMES, "task", "user", "q", "ask")
RESPONSES: tuple[str, ...] = ("response", "solution", "completion", "generation", "output", "rationale", "trace", "cot")
RESPONSES += ("attempt", "reply", "explanation", "answer", "a")
VERDICTS = ("correct", "is_correct", "right", "verdict", "passed")
DEEPEST = 3
LEAST_SHARE = 0.5
"""Share of rows that must have a text at a path."""


def propose_columns(rows: Sequence[Row]) -> Columns | None:
    """Return a mapping for rows, or None if no field looks like a prompt, or none like a response.

    A prompt and a response are recognized by the last name of their path, whole or as a part (`problem_text`). Several
    objects with a text of the same name, such as `model_a.solution` and `model_b.solution`, are candidates.
    """
    texts = {path: _texts(rows, path) for path in _paths(rows)}
    texts = {path: found for path, found in texts.items() if len(found) >= LEAST_SHARE * len(rows) and found}
    prompt = _first(list(texts), PROMPTS)
    responses = [path for path in texts if path != prompt]
    response = _first(responses, RESPONSES, lambda path: _mean_length(texts[path]))
    if prompt is None or response is None:
        return None
    name = _last(response)
    alike = [path for path in responses if _last(path) == name and "." in path and "." in response]
    responses = alike if len(alike) > 1 else [response]
    verdicts = [_verdict(rows, path) for path in responses]
    answer = next((path for path, found in texts.items() if "answer" in _last(path).lower() and _is_short(found)), None)
    found: dict[str, object] = {"prompt": prompt, "response": responses if len(responses) > 1 else response}
    if answer not in {None, prompt, *responses}:
        found["answer"] = answer
    if any(verdicts):
        found["correct"] = verdicts if len(responses) > 1 else verdicts[0]
    return Columns.model_validate(found)


def written(columns: Columns) -> str:
    """Return columns as one line of YAML."""

    def shown(value: object) -> str:
        if isinstance(value, list):
            return f"[{', '.join(map(shown, value))}]"
        return "null" if value is None else f'"{value}"'

    fields = {name: getattr(columns, name) for name in Columns.model_fields}
    return "{" + ", ".join(f"{name}: {shown(value)}" for name, value in fields.items() if value is not None) + "}"


def _paths(rows: Sequence[Row]) -> list[str]:
    """Return the paths of all texts, in order of appearance."""
    found: dict[str, None] = {}
    for row in rows:
        found.update(dict.fromkeys(_text_paths(row, "", DEEPEST)))
    return list(found)


def _text_paths(row: Row, before: str, deeper: int) -> Iterator[str]:
    for name, value in row.items():
        if isinstance(value, str) and '"' not in name:
            yield f"{before}{name}"
        elif isinstance(value, dict) and deeper:
            yield from _text_paths(value, f"{before}{name}.", deeper - 1)


def _texts(rows: Sequence[Row], path: str) -> list[str]:
    return [value for row in rows if isinstance(value := lookup(row, path), str) and value.strip()]


def _first(paths: list[str], names: Sequence[str], length: Callable[[str], float] | None = None) -> str | None:
    """Return the path whose last name is the first of `names`, whole or as a part; the longest texts decide ties."""
    for name in names:
        whole = [path for path in paths if _last(path).lower() == name]
        fits = whole or [path for path in paths if name in _words(_last(path))]
        if fits:
            return fits[0] if length is None else max(fits, key=length)
    return None


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.split(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])", name)]


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _mean_length(texts: Sequence[str]) -> float:
    return sum(map(len, texts)) / len(texts)


def _is_short(texts: Sequence[str]) -> bool:
    return all(len(text) <= SHORT_ANSWER_CHARS and "\n" not in text.strip() for text in texts)


def _verdict(rows: Sequence[Row], response: str) -> str | None:
    """Return the path of the mark beside a response, if there is one."""
    before = response.rpartition(".")[0]
    for name in VERDICTS:
        path = f"{before}.{name}" if before else name
        if any(isinstance(lookup(row, path), bool) for row in rows):
            return path
    return None
