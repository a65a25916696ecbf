"""The corpus: its bytes follow from the seed, sound responses are right, and every flaw is what it says."""

from __future__ import annotations

import ast
import gzip
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curation_assets.demo.corpus import SHARDS, Summary, draw_problems, generate, write_corpus
from curation_assets.demo.flaws import FLAWS
from curation_assets.demo.plans import STYLES, ImpossibleError, Style, apply

Row = dict[str, Any]

ANSWER = re.compile(r"(?:Answer: |#### |\\boxed\{)([^\n}]*)\}?$")
STATEMENT = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
LARGER = re.compile(r"(max of|The larger of|Between) (\d+) and (\d+) (?:is|we keep) (\d+)")
SMALLER = re.compile(r"(min of|The smaller of|From) (\d+) and (\d+) (?:is|we take) (\d+)")
INSERTED = re.compile(r"(?:insert|Put|With) (\d+)[^:]*?(?::|list is) (\d+(?:, \d+)*)")
GREATER = re.compile(r"(\d+) > (\d+), so (\w+) has more")
OPERATIONS: dict[str, Callable[[int, int], int | None]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: None if a % b else a // b,
}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(generate())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return write_corpus(tmp_path_factory.mktemp("landing"))


def split(row: Row) -> tuple[list[str], str]:
    """The steps of a response without numbers or full stops, and its answer; independent of the generator."""
    match = ANSWER.search(row["response"])
    assert match, row["response"]
    body = row["response"][: match.start()].strip()
    separator = "\n" if "\n" in body else ". "
    steps = [step for step in body.removesuffix(".").split(separator) if step]
    return [re.sub(r"^Step \d+: ", "", step) for step in steps], match[1]


def style_of(row: Row) -> Style:
    return next(style for style in STYLES if style.name == row["generator"])


def of_kind(rows: list[Row], kind: str) -> list[Row]:
    return [row for row in rows if row["labels"]["flaw"] == kind]


def sound_steps(rows: list[Row]) -> dict[tuple[str, int], list[str]]:
    """Sound steps by prompt and wording, where the pool happens to hold them."""
    return {(row["prompt"], style_of(row).wording): split(row)[0] for row in of_kind(rows, "clean")}


def pairs(rows: list[Row], kind: str) -> list[tuple[Row, list[str]]]:
    """The flawed rows whose sound counterpart in the same wording is in the pool too."""
    sound = sound_steps(rows)
    found = [
        (row, sound[row["prompt"], style_of(row).wording])
        for row in of_kind(rows, kind)
        if (row["prompt"], style_of(row).wording) in sound
    ]
    assert len(found) > 30
    return found


def faults(text: str) -> list[str]:
    """Every statement of a text that is false, by an evaluation of our own."""
    wrong = [m[0] for m in STATEMENT.finditer(text) if OPERATIONS[m[2]](int(m[1]), int(m[3])) != int(m[4])]
    wrong += [m[0] for m in LARGER.finditer(text) if max(int(m[2]), int(m[3])) != int(m[4])]
    wrong += [m[0] for m in SMALLER.finditer(text) if min(int(m[2]), int(m[3])) != int(m[4])]
    wrong += [m[0] for m in GREATER.finditer(text) if int(m[1]) <= int(m[2])]
    for match in INSERTED.finditer(text):
        numbers = list(ast.literal_eval(f"[{match[2]}]"))
        if numbers != sorted(numbers) or int(match[1]) not in numbers:
            wrong.append(match[0])
    return wrong


def test_default_size_and_shares(rows: list[Row]) -> None:
    counts = Counter(row["labels"]["flaw"] for row in rows)
    assert set(counts) == {"clean", *FLAWS}
    assert 1200 <= len(rows) <= 1600
    assert 0.55 <= counts["clean"] / len(rows) <= 0.65
    assert {source for source, _ in Counter(row["source"] for row in rows).items()} == {
        "arithmetic",
        "units",
        "comparison",
        "story",
        "lists",
    }


@pytest.mark.parametrize("n_prompts", [1, 7, 50, 101])
def test_flaws_in_equal_numbers(n_prompts: int) -> None:
    counts = Counter(row["labels"]["flaw"] for row in generate(3, n_prompts))
    numbers = [counts[kind] for kind in FLAWS]
    assert max(numbers) - min(numbers) <= 1
    assert counts["clean"] == 2 * n_prompts


def test_same_seed_same_bytes(written: Summary, tmp_path: Path) -> None:
    script = (
        "import pathlib, sys; from curation_assets.demo.corpus import write_corpus; "
        "write_corpus(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    for path in written.files:
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_another_seed_gives_other_prompts(rows: list[Row]) -> None:
    other = {row["prompt"] for row in generate(1, 50)}
    assert len(other & {row["prompt"] for row in rows}) < 5


def test_shards_hold_all_rows_in_their_formats(written: Summary, rows: list[Row]) -> None:
    assert tuple(path.name for path in written.files) == SHARDS
    assert written.rows == len(rows)
    read: list[Row] = []
    for path in written.files:
        if path.suffix == ".parquet":
            shard = pl.read_parquet(path).to_dicts()
        else:
            data = path.read_bytes()
            lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode().splitlines()
            shard = [json.loads(line) for line in lines]
        for row in shard:
            if "messages" in row:
                user, assistant = row.pop("messages")
                assert (user["role"], assistant["role"]) == ("user", "assistant")
                row |= {"prompt": user["content"], "response": assistant["content"]}
        assert {row["labels"]["flaw"] for row in shard} == {"clean", *FLAWS}, path.name
        assert len({row["source"] for row in shard}) == 5
        read += shard
    key = "demo_id"
    assert sorted(read, key=lambda row: row[key]) == sorted(rows, key=lambda row: row[key])


def test_rows_are_distinct_and_show_no_label(rows: list[Row]) -> None:
    assert len({(row["prompt"], row["response"]) for row in rows}) == len(rows)
    assert len({row["demo_id"] for row in rows}) == len(rows)
    for row in rows:
        text = (row["prompt"] + row["response"]).lower()
        for word in ("demo", "clean", "flaw", "wrong", "irrelevant", "shuffle", "truncat", "repeat", "label"):
            assert word not in text


def test_sound_responses_are_right(rows: list[Row]) -> None:
    for row in of_kind(rows, "clean"):
        steps, answer = split(row)
        assert not faults(row["response"]), row["response"]
        assert len(steps) == row["labels"]["steps"] >= 3
        assert answer == row["labels"]["right_answer"]
        assert steps[-1].removesuffix(" has more").split("= ")[-1].split(" is ")[-1].find(answer) >= 0
        statements = [*STATEMENT.finditer(row["response"]), *LARGER.finditer(row["response"])]
        statements += [*SMALLER.finditer(row["response"]), *INSERTED.finditer(row["response"])]
        statements += list(GREATER.finditer(row["response"]))
        assert len(statements) == len(steps), row["response"]


def test_lists_are_answered_from_the_prompt(rows: list[Row]) -> None:
    solve: dict[str, Callable[[list[int]], str]] = {
        "Add": lambda numbers: str(sum(numbers)),
        "largest": lambda numbers: str(max(numbers)),
        "smallest": lambda numbers: str(min(numbers)),
        "Sort": lambda numbers: ", ".join(map(str, sorted(numbers))),
    }
    for row in (row for row in rows if row["source"] == "lists"):
        task = next(name for name in solve if name in row["prompt"])
        numbers = [int(number) for number in re.findall(r"\d+", row["prompt"])]
        assert row["labels"]["right_answer"] == solve[task](numbers)


def test_wrong_step_is_the_only_fault_and_is_carried_on(rows: list[Row]) -> None:
    for row in of_kind(rows, "wrong_step"):
        steps, answer = split(row)
        number = row["labels"]["flawed_step"] - 1
        assert answer in steps[-1]
        if not (row["prompt"].startswith("Sort") or "has more" in steps[number]):
            assert [i for i, step in enumerate(steps) if faults(step)] == [number], row["response"]
    changed = [row for row in of_kind(rows, "wrong_step") if split(row)[1] != row["labels"]["right_answer"]]
    assert len(changed) > 70
    for row, sound in pairs(rows, "wrong_step"):
        steps, number = split(row)[0], row["labels"]["flawed_step"] - 1
        assert steps[:number] == sound[:number]
        assert steps[number] != sound[number]


def test_wrong_answer_has_right_steps(rows: list[Row]) -> None:
    for row in of_kind(rows, "wrong_answer"):
        assert not faults(row["response"])
        assert split(row)[1] != row["labels"]["right_answer"]
    for row, sound in pairs(rows, "wrong_answer"):
        assert split(row)[0] == sound


def test_irrelevant_steps_are_foreign_and_the_answer_stays(rows: list[Row]) -> None:
    for row in of_kind(rows, "irrelevant"):
        assert split(row)[1] == row["labels"]["right_answer"]
        assert not faults(row["response"])
    for row, sound in pairs(rows, "irrelevant"):
        steps = split(row)[0]
        assert steps != sound
        place = row["labels"]["flawed_step"] - 1
        assert steps[:place] == sound[:place]
        assert len(sound) <= len(steps) <= len(sound) + 2


def test_shuffled_is_another_order_of_the_same_steps(rows: list[Row]) -> None:
    for row, sound in pairs(rows, "shuffled"):
        steps, answer = split(row)
        assert steps != sound
        assert sorted(steps) == sorted(sound)
        assert answer == row["labels"]["right_answer"]


def test_truncated_has_no_answer(rows: list[Row]) -> None:
    for row in of_kind(rows, "truncated"):
        assert not re.search(r"Answer|####|boxed", row["response"])
        assert row["response"]


def test_repeated_says_one_step_again(rows: list[Row]) -> None:
    for row, sound in pairs(rows, "repeated"):
        steps, answer = split(row)
        place = row["labels"]["flawed_step"] - 1
        extra = len(steps) - len(sound)
        assert 2 <= extra <= 4
        assert steps[place : place + extra + 1] == [sound[place]] * (extra + 1)
        assert steps[:place] + steps[place + extra :] == sound
        assert answer == row["labels"]["right_answer"]


def test_numbered_steps_count_up_in_every_row(rows: list[Row]) -> None:
    for row in rows:
        numbers = [int(number) for number in re.findall(r"^Step (\d+):", row["response"], flags=re.MULTILINE)]
        assert numbers == list(range(1, len(numbers) + 1))


def test_skipped_prompts_are_not_drawn() -> None:
    problems = draw_problems(random.Random(0))
    first = {next(problems).prompt for _ in range(20)}
    again = draw_problems(random.Random(0), skip=first)
    assert first.isdisjoint(next(again).prompt for _ in range(20))


@pytest.mark.parametrize(("a", "op", "b"), [(7, "/", 2), (3, "-", 4), (5, "more", 5), (5, "gap", 5), (50, "*", 60)])
def test_no_sensible_result(a: int, op: str, b: int) -> None:
    with pytest.raises(ImpossibleError):
        apply(op, a, b)
