"""Read benchmarks, held-out prompts with their correct answers or right responses, and compare stated answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from curation_assets import tables
from curation_assets.config.corpus_settings import Columns, Corpus
from curation_assets.config.evaluation_settings import Benchmark, BenchmarkColumns, Metric
from curation_assets.corpus.assemble import SHARED_NAMES
from curation_assets.corpus.containers import read_rows
from curation_assets.corpus.drafts import Draft, Refused
from curation_assets.corpus.fields import Row, first_of, lookup, optional_text
from curation_assets.corpus.formats import Parser, detect
from curation_assets.corpus.formats.instructions import RESPONSE_NAMES
from curation_assets.corpus.identity import prompt_id
from curation_assets.corpus.ingest import present_shards
from curation_assets.corpus.raw_rows import RawRow
from curation_assets.corpus.reading import DETECTION_ROWS
from curation_assets.corpus.row_parts import PROMPT_NAMES, is_conversation, is_short_answer, prompt_turns
from curation_assets.steps.correctness import stated_answer
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from curation_resources.storage.digests import digest

PROMPTS = (*PROMPT_NAMES, "messages")
ANSWERS = (*SHARED_NAMES["answer"], "target", "solution")
MOST_MISTAKES = 5
"""Maximum number of rows that an error names."""


class EvaluationError(UserError):
    """The evaluation cannot be run as configured."""


@dataclass(frozen=True)
class Item:
    """A problem.

    Attributes:
        row: its row in the file; the first, if several rows have its prompt.
        turns: the prompt's turns.
        prompt_id: the prompt's id in the corpus.
        reference: the correct answer, for metric `exact_match`.
        responses: the right responses, for metric `loss`.
    """

    row: int
    turns: list[dict[str, Any]]
    prompt_id: str
    reference: str = ""
    responses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problems:
    """The content of a benchmark for one metric.

    Attributes:
        name: name of the benchmark.
        metric: the metric.
        digest: for `exact_match` of the file's bytes and the configured columns; for `loss` of prompts and responses.
        items: the problems, in the file's order.
        left_out: problems without a right response, which have no loss.
    """

    name: str
    metric: Metric
    digest: str
    items: Sequence[Item]
    left_out: int = 0


def read_benchmark(workspace: Workspace, benchmark: Benchmark) -> list[Problems]:
    """Read a benchmark's file; return its problems for each of its metrics.

    For `exact_match`, if the reference is a worked solution, its answer is extracted by its marker (`####`, a box,
    `Answer:`), as in responses. For `loss`, responses are read as in the corpus, and rows with the same prompt are one
    problem.

    Raises:
        EvaluationError: the file is missing or empty, a row has no prompt, answer or response that its metrics need, or
            no response is right; the message names file, lines and fix.
    """
    path = benchmark_file(workspace, benchmark)
    rows = list(read_rows(path, path.name, workspace.settings.corpus.max_row_bytes))
    if not rows:
        raise EvaluationError(
            f"benchmark {benchmark.name}: {path} has no rows. Add prompts with their answers or responses, or correct "
            f"its path in {workspace.config_file}."
        )
    read = {"exact_match": _with_answers, "loss": _with_responses}
    return [read[metric](workspace, benchmark, path, rows) for metric in benchmark.metric]


def _with_answers(workspace: Workspace, benchmark: Benchmark, path: Path, rows: Sequence[RawRow]) -> Problems:
    """Return the problems for metric `exact_match`."""
    # Stored answers are named by these columns alone.
    columns = benchmark.columns.model_dump(mode="json", include={"prompt", "answer"})
    key = digest("benchmark", workspace.cache.file_digest(path), columns)
    items = _each(benchmark, path, rows, lambda row: _item(row.index, row.value or {}, benchmark.columns))
    return Problems(benchmark.name, "exact_match", key, items)


def _with_responses(workspace: Workspace, benchmark: Benchmark, path: Path, rows: Sequence[RawRow]) -> Problems:
    """Return the problems for metric `loss`, with their right responses."""
    reader = _ResponseReader(workspace.settings.corpus, benchmark.columns, rows)
    found: dict[str, Item] = {}
    for item in _each(benchmark, path, rows, reader.item):
        first = found.setdefault(item.prompt_id, replace(item, responses=()))
        found[item.prompt_id] = replace(first, responses=first.responses + item.responses)
    items = [item for item in found.values() if item.responses]
    if not items:
        raise EvaluationError(
            f"benchmark {benchmark.name}: {path} has no right response: {benchmark.columns.correct or 'correct'} is "
            "false or missing in every row. Correct the marks, map another field (columns: {correct: ...}), or add "
            "right responses."
        )
    key = digest("responses", [[item.row, item.turns, list(item.responses)] for item in items])
    return Problems(benchmark.name, "loss", key, items, len(found) - len(items))


def _each(benchmark: Benchmark, path: Path, rows: Sequence[RawRow], read: Callable[[RawRow], Item]) -> list[Item]:
    """Return the problem of each row.

    Raises:
        EvaluationError: a row cannot be used.
    """
    items: list[Item] = []
    wrong: list[str] = []
    for row in rows:
        try:
            if row.problem is not None:
                raise row.problem
            items.append(read(row))
        except Refused as refusal:
            wrong.append(f"{_place(path, row.index)}: {refusal.detail}")
    if wrong:
        more = f"\nand {len(wrong) - MOST_MISTAKES} more" if len(wrong) > MOST_MISTAKES else ""
        raise EvaluationError(f"benchmark {benchmark.name}: " + "\n".join(wrong[:MOST_MISTAKES]) + more)
    return items


class _ResponseReader:
    """Reads a benchmark's rows with the readers of the corpus, and its settings for reasoning, calls and roles.

    Args:
        corpus: the corpus settings.
        columns: the benchmark's columns.
        rows: all rows, whose format is detected.
    """

    def __init__(self, corpus: Corpus, columns: BenchmarkColumns, rows: Sequence[RawRow]) -> None:
        self._columns = columns
        mapped = Columns(prompt=columns.prompt, response=columns.response, correct=columns.correct)
        shown = [row.value for row in rows if row.value is not None]
        form = detect(shown[:DETECTION_ROWS], mapped) or "prompt_response"
        self._parser = Parser(form, corpus.model_copy(update={"format": "auto", "columns": mapped}))
        self._by_answer: Parser | None = None
        if columns.response is None and columns.answer is not None:
            mapped = mapped.model_copy(update={"response": columns.answer})
            of_answer = corpus.model_copy(update={"format": "auto", "columns": mapped})
            self._by_answer = Parser("prompt_response", of_answer)

    def item(self, row: RawRow) -> Item:
        """Return the problem of a row; without responses if none of them is right.

        Raises:
            Refused: it has no prompt or no response, or one of them cannot be used.
        """
        value = row.value or {}
        drafts = self._drafts(value)
        for draft in drafts:
            if draft.images:
                raise Refused(
                    "wrong_type", "the prompt has images, which are not supported in benchmarks; remove the row"
                )
            if self._is_bare_answer(value, draft.response):
                raise _no_response(self._columns)
        turns = drafts[0].turns
        if any(draft.turns != turns for draft in drafts):
            raise Refused("wrong_type", "the row's responses have different prompts; give each prompt a row of its own")
        right = tuple(draft.response for draft in drafts if self._is_right(draft, drafts))
        return Item(row.index, [turn.record() for turn in turns], prompt_id(turns, ()), responses=right)

    def _drafts(self, row: Row) -> list[Draft]:
        """Return the row's responses.

        Raises:
            Refused: one of them, or the row, cannot be used.
        """
        try:
            found = self._parser.parse(row)
        except Refused as refusal:
            found = [refusal]
        if self._by_answer is not None and _lacks_response(found):
            found = self._by_answer.parse(row)
        if _lacks_response(found):
            raise _no_response(self._columns)
        drafts = [one for one in found if isinstance(one, Draft)]
        for one in found:
            if isinstance(one, Refused):
                raise Refused(one.reason, one.detail.replace("corpus.columns.", "columns."))
        return drafts

    def _is_right(self, draft: Draft, drafts: Sequence[Draft]) -> bool:
        """Return whether a response is right: marked so, or, in a row without marks, not marked as rejected."""
        if self._columns.correct is not None or any(one.correct is not None for one in drafts):
            return draft.correct is True
        return bool(orjson.loads(draft.extra).get("preference") != "rejected")

    def _is_bare_answer(self, row: Row, response: str) -> bool:
        """Return whether the response found is only the answer, which the benchmark does not map as its response."""
        if self._columns.response is not None:
            return False
        name = self._columns.answer or first_of(row, ANSWERS)
        alone = name is not None and is_short_answer(lookup(row, name)) and lookup(row, name) == response
        return alone and stated_answer(response) is None


def benchmark_file(workspace: Workspace, benchmark: Benchmark) -> Path:
    """Return the file of a benchmark.

    Raises:
        EvaluationError: it does not exist.
    """
    path = (workspace.folder / Path(benchmark.path).expanduser()).resolve()
    if "://" in benchmark.path or not path.is_file():
        raise EvaluationError(
            f"benchmark {benchmark.name}: file {benchmark.path if '://' in benchmark.path else path} not found. "
            f"Correct its path in {workspace.config_file} (benchmarks must be local files)."
        )
    return path


def _place(path: Path, index: int) -> str:
    if index < 0:
        return str(path)
    # Line numbers start from 1.
    return f"{path}, row {index + 1}" if path.name.endswith(".parquet") else f"{path}:{index + 1}"


def _item(index: int, row: Row, columns: BenchmarkColumns) -> Item:
    """Return the problem of a row.

    Raises:
        Refused: it has no prompt or no answer, or one of them is not text.
    """
    asked = columns.prompt or first_of(row, PROMPTS)
    talk = prompt_turns(lookup(row, asked) if asked else None, row, asked or "the prompt")
    if talk.images:
        raise Refused("wrong_type", "the prompt has images, which are not supported in benchmarks; remove the row")
    turns = talk.turns
    if turns and turns[-1].role == "assistant":
        # In a full conversation, the last turn is the reference.
        turns = turns[:-1]
    if not any(turn.content.strip() for turn in turns):
        raise Refused("missing_prompt", f"the row has no prompt{_looked_for(columns.prompt, PROMPTS, 'prompt')}")
    reference = _reference(row, columns, asked)
    if reference is None:
        raise Refused("missing_answer", f"the row has no answer{_looked_for(columns.answer, ANSWERS, 'answer')}")
    asking = [{"role": turn.role, "content": turn.content} for turn in turns]
    return Item(index, asking, prompt_id(turns, ()), reference)


def _reference(row: Row, columns: BenchmarkColumns, asked: str | None) -> str | None:
    """Return the correct answer of a row; None if it has none."""
    name = columns.answer or first_of(row, [name for name in ANSWERS if name != asked])
    said = optional_text(lookup(row, name), name) if name else None
    if name is None and asked is not None and is_conversation(lookup(row, asked)):
        last = prompt_turns(lookup(row, asked), row, asked).turns[-1]
        said = last.content if last.role == "assistant" else None
    return None if said is None or not said.strip() else stated_answer(said) or said.strip()


def _lacks_response(found: Sequence[Draft | Refused]) -> bool:
    return any(isinstance(one, Refused) and one.reason == "missing_response" for one in found)


def _no_response(columns: BenchmarkColumns) -> Refused:
    names = (*RESPONSE_NAMES, "messages")
    return Refused(
        "missing_response", f"the row has no right response{_looked_for(columns.response, names, 'response')}"
    )


def prompts_in_corpus(workspace: Workspace, benchmarks: Sequence[Problems]) -> dict[str, int]:
    """Return, for each benchmark, how many of its prompts are in the present shards, so that training may reveal
    answers."""
    corpus = workspace.warehouse.scan(tables.raw_corpus_dir(), present_shards(workspace))
    held: set[str] = set()
    if corpus is not None:
        asked = pl.LazyFrame({"prompt_id": [item.prompt_id for problems in benchmarks for item in problems.items]})
        found = corpus.select("prompt_id").unique().join(asked, on="prompt_id", how="semi").collect()
        held = set(found["prompt_id"].to_list())
    found_in: dict[str, int] = {}
    for problems in benchmarks:
        # The problems of both metrics of a benchmark have the same prompts.
        found_in.setdefault(problems.name, sum(item.prompt_id in held for item in problems.items))
    return found_in


def _looked_for(mapped: str | None, names: Sequence[str], what: str) -> str:
    if mapped is not None:
        return f" in field {mapped!r}. Correct the row, or map another field (columns: {{{what}: ...}})."
    return f" (looked for {', '.join(names)}). Correct the row, or map its field (columns: {{{what}: ...}})."
