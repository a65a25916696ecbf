"""Read benchmarks, held-out prompts with their correct answers, and compare stated answers with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from curation_assets import tables
from curation_assets.config.evaluation_settings import Benchmark, BenchmarkColumns
from curation_assets.corpus.assemble import SHARED_NAMES
from curation_assets.corpus.containers import read_rows
from curation_assets.corpus.drafts import Refused
from curation_assets.corpus.fields import Row, first_of, lookup, optional_text
from curation_assets.corpus.identity import prompt_id
from curation_assets.corpus.ingest import present_shards
from curation_assets.corpus.row_parts import PROMPT_NAMES, is_conversation, prompt_turns
from curation_assets.steps.answers import find_answer
from curation_assets.steps.correctness import same_answer
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
    """A problem: its row in the file, the prompt's turns, the correct answer, and the prompt's id in the corpus."""

    row: int
    turns: list[dict[str, str]]
    reference: str
    prompt_id: str


@dataclass(frozen=True)
class Problems:
    """The content of a benchmark.

    Attributes:
        name: name of the benchmark.
        digest: digest of the file's bytes and the configured columns.
        items: the problems, in the file's order.
    """

    name: str
    digest: str
    items: Sequence[Item]


def read_benchmark(workspace: Workspace, benchmark: Benchmark) -> Problems:
    """Read a benchmark's file.

    If the reference is a worked solution, its answer is extracted by its marker (`####`, a box, `Answer:`), as in
    responses.

    Raises:
        EvaluationError: the file is missing or empty, or a row has no prompt or no answer; the message names file,
            lines and fix.
    """
    path = benchmark_file(workspace, benchmark)
    key = digest("benchmark", workspace.cache.file_digest(path), benchmark.columns.model_dump(mode="json"))
    items: list[Item] = []
    wrong: list[str] = []
    for row in read_rows(path, path.name, workspace.settings.corpus.max_row_bytes):
        try:
            if row.problem is not None:
                raise row.problem
            items.append(_item(row.index, row.value or {}, benchmark.columns))
        except Refused as refusal:
            wrong.append(f"{_place(path, row.index)}: {refusal.detail}")
    if wrong:
        more = f"\nand {len(wrong) - MOST_MISTAKES} more" if len(wrong) > MOST_MISTAKES else ""
        raise EvaluationError(f"benchmark {benchmark.name}: " + "\n".join(wrong[:MOST_MISTAKES]) + more)
    if not items:
        raise EvaluationError(
            f"benchmark {benchmark.name}: {path} has no rows. Add prompts with their answers, or correct its path in "
            f"{workspace.config_file}."
        )
    return Problems(benchmark.name, key, items)


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
    return Item(index, asking, reference, prompt_id(turns, ()))


def _reference(row: Row, columns: BenchmarkColumns, asked: str | None) -> str | None:
    """Return the correct answer of a row; None if it has none."""
    name = columns.answer or first_of(row, [name for name in ANSWERS if name != asked])
    said = optional_text(lookup(row, name), name) if name else None
    if name is None and asked is not None and is_conversation(lookup(row, asked)):
        last = prompt_turns(lookup(row, asked), row, asked).turns[-1]
        said = last.content if last.role == "assistant" else None
    return None if said is None or not said.strip() else stated_answer(said) or said.strip()


def prompts_in_corpus(workspace: Workspace, benchmarks: Sequence[Problems]) -> dict[str, int]:
    """Return, for each benchmark, how many of its prompts are in the present shards, so that training may reveal
    answers."""
    corpus = workspace.warehouse.scan(tables.raw_corpus_dir(), present_shards(workspace))
    held: set[str] = set()
    if corpus is not None:
        asked = pl.LazyFrame({"prompt_id": [item.prompt_id for problems in benchmarks for item in problems.items]})
        found = corpus.select("prompt_id").unique().join(asked, on="prompt_id", how="semi").collect()
        held = set(found["prompt_id"].to_list())
    return {problems.name: sum(item.prompt_id in held for item in problems.items) for problems in benchmarks}


def stated_answer(text: str) -> str | None:
    """Return the answer stated in a text, found by the markers of segmentation; None without one."""
    found = find_answer(text)
    return None if found is None else text[found.start : found.end]


def _looked_for(mapped: str | None, names: Sequence[str], what: str) -> str:
    if mapped is not None:
        return f" in field {mapped!r}. Correct the row, or map another field (columns: {{{what}: ...}})."
    return f" (looked for {', '.join(names)}). Correct the row, or map its field (columns: {{{what}: ...}})."


def judged(text: str, reference: str) -> tuple[str | None, bool]:
    """Return the answer stated in a text, and whether it matches the reference; a text without one is wrong.

    `1,000` is `1000`, `$5.` is `5`, `\\\\boxed{7}` is `7` (`curation_assets.steps.correctness.same_answer`).
    """
    answer = stated_answer(text)
    return answer, answer is not None and same_answer(answer, reference)
