"""Mapped columns: they win over a format's own names, reach into objects, and say what they cannot use."""

from __future__ import annotations

import json

import pytest

from curation_assets.corpus.drafts import Refused, Turn
from curation_assets.corpus.fields import MISSING, lookup, remainder
from curation_assets.corpus.formats import detect
from tests.corpus.helpers import Json, columns, data_file, draft, drafts, parse, read

SOLUTIONS = ["6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"]
MAPPED = {
    "prompt": "question",
    "response": ["ground_truth", *(f"{name}.solution" for name in SOLUTIONS)],
    "correct": [True, *(f"{name}.is_correct" for name in SOLUTIONS)],
}


def test_paths() -> None:
    row = {"a": {"b": [{"c": 1}]}, "a.b": 2, "x": None}
    assert lookup(row, "a.b") == 2
    assert lookup(row, "a.b.0.c") == 1
    assert lookup(row, "x") is None
    assert lookup(row, "a.b.1.c") is MISSING
    assert lookup(row, "x.y") is MISSING
    assert remainder(row, ["a.b", "x"]) == {"a": {"b": [{"c": 1}]}}
    assert remainder({"a": {"b": 1, "c": {"d": 2}}}, ["a.b", "a.c.d"]) == {}
    assert remainder({"a": {"b": 1, "c": 2}}, ["a.b", "a.z", "q.r"]) == {"a": {"c": 2}}


def test_a_list_of_paths_is_a_prompt_group() -> None:
    row = {"question": "q", "ground_truth": "It is 4."} | {
        name: {"solution": f"I say {index}.", "is_correct": index == 4, "note": index}
        for index, name in enumerate(SOLUTIONS, start=3)
    }
    found = drafts(row, "prompt_response", columns(**MAPPED))
    assert [item.generator for item in found] == ["ground_truth", *SOLUTIONS]
    assert [item.correct for item in found] == [True, False, True, False, False]
    assert json.loads(found[0].extra) == {name: {"note": index} for index, name in enumerate(SOLUTIONS, start=3)}


def test_a_missing_path_is_one_rejected_candidate() -> None:
    mapped = columns(prompt="q", response=["a", "b.c"], generator=[None, "b.who"])
    first, second = parse({"q": "Q", "a": "A"}, "prompt_response", mapped)
    assert not isinstance(first, Refused)
    assert first.generator is None
    assert isinstance(second, Refused)
    assert second.reason == "missing_response"


def test_mapping_adds_to_any_format() -> None:
    row: Json = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "It is 4."}],
        "meta": {"who": "m", "ok": 1, "points": 2, "set": "s", "kind": 3, "said": 4},
        "model": "not this",
    }
    mapped = columns(
        generator="meta.who",
        correct="meta.ok",
        reward="meta.points",
        source="meta.set",
        domain="meta.kind",
        answer="meta.said",
    )
    assert detect([row], mapped) == "messages"
    found = draft(row, "messages", mapped)
    assert (found.generator, found.correct, found.reward) == ("m", True, 2.0)
    assert (found.source, found.domain, found.answer) == ("s", "3", "4")
    assert json.loads(found.extra) == {"model": "not this"}


def test_mapping_overrides_prompt_and_response() -> None:
    row = {"instruction": "q", "output": "a", "better": {"q": "Q", "a": ["A", "B"]}, "ok": [True, None]}
    found = drafts(row, "alpaca", columns(prompt="better.q", response="better.a", correct="ok"))
    assert [(item.turns, item.response, item.correct) for item in found] == [
        ((Turn("user", "Q"),), "A", True),
        ((Turn("user", "Q"),), "B", None),
    ]
    assert json.loads(found[0].extra) == {"instruction": "q", "output": "a"}


def test_mapped_fields_are_not_offered_under_their_own_name() -> None:
    mapped = columns(answer="answer")
    assert detect([{"question": "q", "answer": "4"}], mapped) is None
    assert draft({"question": "q", "solution": "It is 4.", "answer": "4"}, "prompt_response", mapped).answer == "4"


@pytest.mark.parametrize(
    ("mapped", "value"),
    [
        ({"correct": "x"}, "yes"),
        ({"correct": "x"}, 2),
        ({"reward": "x"}, "high"),
        ({"reward": "x"}, True),
        ({"generator": "x"}, ["m", "n"]),
        ({"answer": "x"}, {"text": "4"}),
        ({"answer": "x"}, True),
        ({"steps": "x"}, "One."),
        ({"steps": "x"}, ["One.", 2]),
        ({"images": "x"}, 5),
        ({"source": "x"}, [1]),
        ({"prompt": "x"}, 5),
        ({"prompt": "x"}, {"text": "q"}),
        ({"response": "x"}, 5),
    ],
)
def test_mapped_values_of_a_wrong_type_are_refused(mapped: dict[str, str], value: object) -> None:
    try:
        (found,) = parse({"prompt": "q", "response": "One. 2", "x": value}, "prompt_response", columns(**mapped))
    except Refused as refusal:
        found = refusal
    assert isinstance(found, Refused)
    assert found.reason == "wrong_type"


def test_own_names_of_a_wrong_type_are_left_in_extra() -> None:
    row = {"prompt": "q", "response": "r", "correct": "A", "reward": "high", "model": 3, "source": {"a": 1}}
    found = draft(row, "prompt_response")
    assert (found.correct, found.reward, found.generator, found.source) == (None, None, None, None)
    assert json.loads(found.extra) == {"correct": "A", "model": 3, "reward": "high", "source": {"a": 1}}


@pytest.mark.data
def test_gsm8k_model_solutions_are_five_responses_to_each_prompt() -> None:
    rows = read(data_file("gsm8k/example_model_solutions.jsonl"), columns=MAPPED)
    assert rows.rows_in == 1319
    assert rows.accepted.height == 6595
    assert rows.accepted["prompt_id"].n_unique() == 1319
    assert rows.rejected.is_empty()
    assert set(rows.accepted["generator"]) == {"ground_truth", *SOLUTIONS}
    assert rows.accepted.filter(generator="ground_truth")["correct"].all()


@pytest.mark.data
def test_gsm8k_under_auto() -> None:
    rows = read(data_file("gsm8k/train.jsonl"))
    assert (rows.format, rows.rows_in, rows.accepted.height) == ("prompt_response", 7473, 7473)
    assert rows.accepted["answer"].null_count() == 7473
    assert rows.accepted["response"].str.contains("#### ", literal=True).all()
