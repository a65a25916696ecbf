"""The demo corpus: rows generated from a seed, and the shard files that `curate demo` writes.

`labels` records the flaw of each row. No method reads it; it serves to check the methods.
"""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from curation_assets.demo.flaws import FLAWS, Written, clean
from curation_assets.demo.plans import HOUSE_STYLES, STYLE_WEIGHTS, STYLES, Problem, Style, answer_text, calculate
from curation_assets.demo.problems import FAMILIES

DEFAULT_PROMPTS = 450
CLEAN_PER_PROMPT = 2
SHARDS = ("part-0.jsonl", "part-1.jsonl", "part-2.messages.jsonl", "part-3.jsonl.gz", "part-4.parquet")

Row = dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """The written files, and the number of rows with each flaw."""

    files: tuple[Path, ...]
    prompts: int
    rows: int
    flaws: dict[str, int]


def draw_problems(rng: random.Random, skip: AbstractSet[str] = frozenset()) -> Iterator[Problem]:
    """Draw problems endlessly, cycling through the families, without repeating a prompt or using one in `skip`."""
    seen = set(skip)
    while True:
        for family in FAMILIES:
            problem = family(rng)
            while problem.prompt in seen:
                problem = family(rng)
            seen.add(problem.prompt)
            yield problem


def draw_styles(rng: random.Random, family: str, count: int) -> list[Style]:
    """Draw different writers of a family, the commonest more often."""
    names: list[str] = []
    while len(names) < count:
        name = rng.choices(HOUSE_STYLES[family], weights=STYLE_WEIGHTS)[0]
        if name not in names:
            names.append(name)
    by_name = {style.name: style for style in STYLES}
    return [by_name[name] for name in names]


def _kinds(rng: random.Random) -> Iterator[str]:
    """Draw flaws from a deck that is reshuffled when it is used up, so that their numbers stay equal."""
    while True:
        deck = list(FLAWS)
        rng.shuffle(deck)
        yield from deck


def _flawed(kind: str, problem: Problem, others: Sequence[Problem], rng: random.Random) -> tuple[Style, Written]:
    """Plant a flaw, drawing again if the result happens to equal the sound text."""
    while True:
        style = draw_styles(rng, problem.family, 1)[0]
        other = rng.choice(others)
        written = FLAWS[kind](problem, style, other, rng)
        if other is not problem and written.response != clean(problem, style).response:
            return style, written


def generate(seed: int = 0, n_prompts: int = DEFAULT_PROMPTS) -> Iterator[Row]:
    """Yield the rows of a demo corpus, prompt by prompt: two sound responses and one or two flawed ones each.

    The same arguments give the same rows. Every third prompt has two flawed responses, so that 60 % of the rows are
    sound.
    """
    rng = random.Random(f"demo corpus {seed}")
    drawn = draw_problems(rng)
    problems = [next(drawn) for _ in range(max(n_prompts, len(FAMILIES)))]
    kinds = _kinds(rng)
    number = 0
    for index, problem in enumerate(problems[:n_prompts]):
        responses = [(style, clean(problem, style)) for style in draw_styles(rng, problem.family, CLEAN_PER_PROMPT)]
        for _ in range(2 if index % 3 == 0 else 1):
            responses.append(_flawed(next(kinds), problem, problems, rng))
        rng.shuffle(responses)
        for style, written in responses:
            yield _row(number, problem, style, written)
            number += 1


def _row(number: int, problem: Problem, style: Style, written: Written) -> Row:
    return {
        "demo_id": f"demo-{number:05d}",
        "prompt": problem.prompt,
        "response": written.response,
        "source": problem.family,
        "domain": problem.domain,
        "generator": style.name,
        "labels": {
            "flaw": written.flaw,
            "flawed_step": written.flawed_step,
            "steps": written.steps,
            "right_answer": answer_text(problem, calculate(problem.steps)),
        },
    }


def as_messages(row: Row) -> Row:
    """Convert a row with prompt and response to a chat of two turns."""
    turns = [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["response"]},
    ]
    return {"messages": turns} | {name: row[name] for name in row if name not in ("prompt", "response")}


def _write_shard(path: Path, rows: Sequence[Row]) -> None:
    if path.suffix == ".parquet":
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
        return
    lines = [as_messages(row) if ".messages." in path.name else row for row in rows]
    data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    # No timestamp in the header, because the same seed has to give the same bytes.
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def write_corpus(folder: Path, seed: int = 0, n_prompts: int = DEFAULT_PROMPTS) -> Summary:
    """Write the demo corpus as five shards into a folder, which is created if needed.

    All responses to a prompt are in one shard; every shard has all families and, at the default size, all flaws.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(generate(seed, n_prompts))
    order = {prompt: i for i, prompt in enumerate(dict.fromkeys(row["prompt"] for row in rows))}
    shards: list[list[Row]] = [[] for _ in SHARDS]
    for row in rows:
        shards[order[row["prompt"]] * len(SHARDS) // n_prompts].append(row)
    files = tuple(folder / name for name in SHARDS)
    for path, shard in zip(files, shards, strict=True):
        _write_shard(path, shard)
    flaws = Counter(row["labels"]["flaw"] for row in rows)
    return Summary(files, len(order), len(rows), dict(sorted(flaws.items())))
