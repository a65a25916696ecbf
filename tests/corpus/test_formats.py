"""Every format: how a row is recognised and what it becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from curation_assets.config.corpus_settings import Format
from curation_assets.corpus.drafts import Draft, Refused, Turn
from curation_assets.corpus.formats import FORMATS, detect
from tests.corpus.helpers import Json, columns, draft, drafts, jsonl, parse, read

USER = Turn("user", "2 + 2?")
ROWS: dict[str, Json] = {
    "messages": {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
    "alpaca": {"instruction": "2 + 2?", "input": "", "output": "4"},
    "prompt_response": {"question": "2 + 2?", "answer": "4"},
    "preference": {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
    "mmathcot": {"image_url": "https://x.org/a.png", "instruction": "2 + 2?", "output": "4"},
    "openthoughts": {
        "system": "Think.",
        "conversations": [
            {"from": "user", "value": "2 + 2?"},
            {"from": "assistant", "value": "<|begin_of_thought|>\nhm\n<|end_of_thought|>\n"},
        ],
    },
    "m23k": {"prompt": "2 + 2?", "reasoning": "hm", "distilled_answer_string": "4", "source": "medqa"},
    "s1k": {"question": "2 + 2?", "solution": "4", "thinking_trajectories": ["hm"], "attempt": "It is 4."},
    "stepwise": {"prompt": "2 + 2?", "completions": ["Add them.", "It is 4."], "labels": [True, True]},
    "ultrainteract": {
        "task": "Math_CoT",
        "dataset": "gsm8k",
        "instruction": "2 + 2?",
        "response": "4",
        "id": "1",
        "parent_id": "0",
    },
}


def test_every_format_of_the_settings_is_there() -> None:
    names = set(Format.__args__) - {"auto"}  # type: ignore[attr-defined]
    assert set(FORMATS) == set(ROWS) == names


@pytest.mark.parametrize("name", ROWS)
def test_each_shape_is_recognised(name: str) -> None:
    assert detect([ROWS[name]]) == name
    assert FORMATS[name].matches(ROWS[name])
    assert USER in drafts(ROWS[name], name)[0].turns


def test_the_majority_decides_and_the_order_of_rows_does_not() -> None:
    rows = [ROWS["alpaca"], ROWS["messages"], ROWS["messages"]]
    assert detect(rows) == detect(rows[::-1]) == "messages"
    assert detect([ROWS["alpaca"], ROWS["messages"]]) == detect([ROWS["messages"], ROWS["alpaca"]]) == "messages"
    assert detect([{"a": 1}, ROWS["alpaca"]]) == "alpaca"
    assert detect([{"a": 1}]) is None
    assert detect([]) is None


def test_messages_last_assistant_turn_is_the_response() -> None:
    turns = [("system", "Be brief."), ("user", "1 + 1?"), ("assistant", "2"), ("user", "2 + 2?"), ("assistant", "4")]
    row: Json = {"messages": [{"role": role, "content": text} for role, text in turns], "id": 7, "model": "m"}
    found = draft(row, "messages")
    assert found.turns == tuple(Turn(*turn) for turn in turns[:-1])
    assert (found.response, found.generator, found.extra) == ("4", "m", '{"id":7}')


def test_messages_content_in_parts() -> None:
    content = [{"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}, {"type": "text", "text": " What?"}]
    row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat."}]}
    found = draft(row, "messages")
    assert found.turns == (Turn("user", "<image> What?"),)
    assert found.images == ("https://x.org/a.png",)


def parts_row(*parts: Json, **further: object) -> Json:
    said = {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}
    return {"messages": [{"role": "user", "content": list(parts)}, said]} | further


@pytest.mark.parametrize(
    ("row", "text", "images"),
    [
        (
            parts_row({"type": "text", "text": "Left "}, {"type": "image", "image": "a.png"}, {"text": ", right "})
            | {"images": None},
            "Left <image>, right ",
            ("a.png",),
        ),
        (parts_row({"type": "image"}, {"type": "text", "text": "?"}, images=["a.png"]), "<image>?", ("a.png",)),
        # In the turns and in a field beside: the same images, named twice.
        (parts_row({"type": "image", "path": "a.png"}, images=["a.png"]), "<image>", ("a.png",)),
        (
            parts_row(
                {"type": "image", "text": None, "image": {"bytes": b"one", "path": "x"}, "image_url": None},
                {"type": "text", "text": "and", "image": None, "image_url": None},
                {"type": "image", "text": None, "image": None, "image_url": {"url": "https://x.org/b.png"}},
            ),
            "<image>and<image>",
            (b"one", "https://x.org/b.png"),
        ),
        (parts_row({"type": "image", "bytes": b"one", "path": None}), "<image>", (b"one",)),
    ],
)
def test_parts_mark_where_their_images_stand(row: Json, text: str, images: tuple[object, ...]) -> None:
    found = draft(row, "messages")
    assert (found.turns, found.images) == ((Turn("user", text),), images)


def test_sharegpt_keeps_its_marks() -> None:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    found = draft({"conversations": turns, "image": "a.png"}, "sharegpt")
    assert (found.turns, found.images) == ((Turn("user", "<image>\nWhat is it?"),), ("a.png",))
    # A mark without an image is text.
    alone = draft({"conversations": turns}, "sharegpt")
    assert (alone.turns, alone.images) == (found.turns, ())


def test_a_candidates_own_prompt_brings_its_images() -> None:
    asked = {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]}
    row = {name: [asked, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    for found in drafts(row, "preference"):
        assert (found.turns, found.images) == ((Turn("user", "<image>?"),), ("a.png",))


def test_a_mapped_column_of_images_wins() -> None:
    row = parts_row({"type": "image", "image": "inside.png"}, picture="mapped.png")
    assert draft(row, "messages", columns(images="picture")).images == ("mapped.png",)
    assert draft(row | {"picture": None}, "messages", columns(images="picture")).images == ("inside.png",)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "user", "content": "2 + 2?"}], "missing_response"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "  "}], "empty_response"),
        ([{"role": "assistant", "content": "4"}], "missing_prompt"),
        ([{"role": "user", "content": " "}, {"role": "assistant", "content": "4"}], "missing_prompt"),
        ([{"role": "narrator", "content": "a"}], "unknown_role"),
        ([{"role": "user", "content": 4}], "wrong_type"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "wrong_type"),
        ([{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "4"}]}], "wrong_type"),
        (["hello"], "wrong_type"),
        ("hello", "wrong_type"),
        ([], "missing_prompt"),
    ],
)
def test_bad_conversations(messages: object, reason: str) -> None:
    assert refusal({"messages": messages}, "messages") == reason


def refusal(row: Json, name: str, **mapped: object) -> str:
    try:
        (found,) = parse(row, name, columns(**mapped))
    except Refused as error:
        return error.reason
    assert isinstance(found, Refused)
    return found.reason


def test_sharegpt_roles_and_blank_system() -> None:
    row: Json = {"system": "", "conversations": [{"from": "system", "value": " "}, *ROWS["sharegpt"]["conversations"]]}
    assert draft(row, "sharegpt").turns == (USER,)
    row["system"] = "Think."
    assert draft(row, "sharegpt").turns == (Turn("system", "Think."), USER)


def test_openthoughts_keeps_its_marks() -> None:
    found = draft(ROWS["openthoughts"], "openthoughts")
    assert found.turns == (Turn("system", "Think."), USER)
    assert found.response == "<|begin_of_thought|>\nhm\n<|end_of_thought|>\n"
    newer: Json = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "<think>a</think>b"}]}
    assert detect([newer]) == "openthoughts"


def test_alpaca_joins_input_and_takes_history() -> None:
    row = {"instruction": "Add.", "input": "2, 2", "output": "4", "system": "Hm.", "history": [["Hi", "Hello"]]}
    found = draft(row, "alpaca")
    expected = [("system", "Hm."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Add.\n2, 2")]
    assert found.turns == tuple(Turn(*turn) for turn in expected)
    assert found.extra == "{}"
    assert refusal({"instruction": "a", "output": "b", "history": [["x"]]}, "alpaca") == "wrong_type"
    assert refusal({"instruction": " ", "output": "b"}, "alpaca") == "missing_prompt"


def test_a_lone_answer_is_the_response_and_a_short_one_beside_it_the_answer() -> None:
    lone = draft({"question": "2 + 2?", "answer": "It is 4.\n#### 4"}, "prompt_response")
    assert (lone.response, lone.answer) == ("It is 4.\n#### 4", None)
    beside = draft({"problem": "2 + 2?", "solution": "It is 4.", "answer": "4"}, "prompt_response")
    assert (beside.response, beside.answer) == ("It is 4.", "4")
    other = draft({"question": "2 + 2?", "answer": "It is 4.", "final_answer": 4}, "prompt_response")
    assert (other.response, other.answer) == ("It is 4.", "4")
    long = draft({"prompt": "2 + 2?", "response": "It is 4.", "answer": "x" * 500}, "prompt_response")
    assert (long.answer, json.loads(long.extra)) == (None, {"answer": "x" * 500})


def test_several_responses_with_their_own_verdicts() -> None:
    row = {"prompt": "2 + 2?", "responses": ["4", "5"], "is_correct": [True, False], "answer": "4", "model": "m"}
    found = drafts(row, "prompt_response")
    assert [(item.response, item.correct, item.answer, item.generator) for item in found] == [
        ("4", True, "4", "m"),
        ("5", False, "4", "m"),
    ]
    unclear = drafts({"prompt": "2 + 2?", "responses": ["4", "5"], "is_correct": True}, "prompt_response")
    assert [item.correct for item in unclear] == [None, None]


def test_one_bad_candidate_leaves_the_others() -> None:
    talk = [{"role": "assistant", "content": "6"}]
    bad = [{"role": "who", "content": "7"}]
    found = parse({"prompt": "q", "completions": ["4", " ", 5, None, talk, bad]}, "prompt_response")
    assert [item.reason if isinstance(item, Refused) else item.response for item in found] == [
        "4",
        "empty_response",
        "wrong_type",
        "missing_response",
        "6",
        "unknown_role",
    ]


def test_steps_alone_are_the_response() -> None:
    found = draft({"prompt": "q", "steps": ["One.", "Two."], "answer": "2"}, "prompt_response")
    assert (found.response, found.steps, found.answer) == ("One.\nTwo.", ("One.", "Two."), "2")
    assert detect([{"prompt": "q", "steps": ["One."]}]) == "prompt_response"
    mapped = columns(prompt="q", steps="done")
    found = draft({"q": "q", "done": ["One.", "Two."], "answer": "2"}, "prompt_response", mapped)
    assert (found.response, found.answer) == ("One.\nTwo.", "2")


def test_steps_must_stand_in_the_response_in_order() -> None:
    row = {"prompt": "q", "response": "One.  Two.", "steps": [" One. ", "", "Two."]}
    assert draft(row, "prompt_response").steps == (" One. ", "", "Two.")
    for steps in (["Two.", "One."], ["One.", "One."], ["Three."]):
        assert refusal(row | {"steps": steps}, "prompt_response") == "steps_not_in_response"
    assert draft(row | {"steps": [" "]}, "prompt_response").steps is None


def test_preference_gives_two_candidates_of_one_prompt() -> None:
    better, worse = drafts(ROWS["preference"] | {"system": "S", "score": 1}, "preference")
    assert better.turns == worse.turns == (Turn("system", "S"), USER)
    assert (better.response, worse.response, better.correct) == ("4", "5", None)
    assert json.loads(better.extra) == {"preference": "chosen", "score": 1}
    assert json.loads(worse.extra) == {"preference": "rejected", "score": 1}


def test_preference_of_conversations_with_and_without_their_prompt() -> None:
    asked = {"role": "user", "content": "2 + 2?"}
    whole = {
        name: [asked, {"role": "assistant", "content": said}] for name, said in (("chosen", "4"), ("rejected", "5"))
    }
    rows: list[Json] = [whole, {"prompt": "2 + 2?"} | whole]
    for row in rows:
        assert [(item.turns, item.response) for item in drafts(row, "preference")] == [((USER,), "4"), ((USER,), "5")]
    replies: Json = {"prompt": [asked], "chosen": whole["chosen"][1:], "rejected": whole["rejected"][1:]}
    assert [(item.turns, item.response) for item in drafts(replies, "preference")] == [((USER,), "4"), ((USER,), "5")]


def test_ultrainteract_pairs() -> None:
    path = [{"from": "user", "value": "2 + 2?"}, {"from": "assistant", "value": "5"}, {"from": "user", "value": "No."}]
    row: Json = {"task": "Coding", "dataset": "d", "trajectory": path, "chosen": "4", "rejected": "6", "id": "1_0"}
    assert detect([row]) == "ultrainteract"
    better, worse = drafts(row, "ultrainteract")
    assert better.turns == worse.turns == (USER, Turn("assistant", "5"), Turn("user", "No."))
    assert (better.source, better.domain, better.response, worse.response) == ("d", "Coding", "4", "6")
    assert json.loads(worse.extra) == {"id": "1_0", "preference": "rejected"}
    sft = draft(ROWS["ultrainteract"], "ultrainteract")
    assert (sft.turns, sft.response, sft.source) == ((USER,), "4", "gsm8k")


def test_m23k_is_composed_of_reasoning_and_distilled_answer() -> None:
    found = draft(ROWS["m23k"], "m23k")
    assert (found.response, found.answer, found.source) == ("<think>\nhm\n</think>\n\n4", "4", "medqa")
    assert refusal({"prompt": "q", "reasoning": None, "distilled_answer_string": "4"}, "m23k") == "missing_response"
    assert refusal({"prompt": "q", "reasoning": " ", "distilled_answer_string": "4"}, "m23k") == "empty_response"


def test_mmathcot_has_its_image() -> None:
    found = draft(ROWS["mmathcot"], "mmathcot")
    assert (found.turns, found.images, found.extra) == ((USER,), ("https://x.org/a.png",), "{}")


THOUGHT = "First two.\n\nThen two more."
JOINED = f"<think>\n{THOUGHT}\n</think>\n\nIt is 4."


def beside(**turn: object) -> Json:
    return {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", **turn}]}


@pytest.mark.parametrize(
    "row",
    [
        beside(content="It is 4.", reasoning_content=THOUGHT),
        beside(content="\n\nIt is 4.", reasoning=THOUGHT + "\n"),
        beside(content="It is 4.", thinking=THOUGHT, tool_calls=None),
        beside(content=[{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": "It is 4."}]),
        {"prompt": "2 + 2?", "reasoning": THOUGHT, "response": "It is 4."},
        {"question": "2 + 2?", "reasoning_content": THOUGHT, "content": "It is 4."},
        {"input": "2 + 2?", "reasoning_content": THOUGHT, "content": "It is 4."},
        {"instruction": "2 + 2?", "input": "", "thinking": THOUGHT, "output": "It is 4."},
        {"Question": "2 + 2?", "Complex_CoT": THOUGHT, "Response": "It is 4."},
        {"question": "2 + 2?", "thinking_trajectories": [THOUGHT], "attempt": "It is 4."},
        {"prompt": "2 + 2?", "reasoning": THOUGHT, "distilled_answer_string": "It is 4."},
    ],
)
def test_reasoning_beside_an_answer_is_part_of_the_response(row: Json) -> None:
    name = detect([row])
    assert name is not None
    found = draft(row, name)
    assert found.turns == (USER,)
    assert found.response == JOINED
    assert THOUGHT not in json.loads(found.extra).values()


def test_reasoning_alone_is_the_response() -> None:
    rows: list[Json] = [beside(content=None, reasoning_content=THOUGHT), {"prompt": "2 + 2?", "reasoning": THOUGHT}]
    for row in rows:
        assert draft(row, str(detect([row]))).response == f"<think>\n{THOUGHT}\n</think>"


def test_reasoning_that_the_response_holds_already_is_not_put_twice() -> None:
    assert draft(beside(content=JOINED, reasoning_content=THOUGHT), "messages").response == JOINED
    tagged = beside(content="It is 4.", reasoning_content=f"<think>\n{THOUGHT}\n</think>")
    assert draft(tagged, "messages").response == JOINED


def test_reasoning_is_joined_as_configured() -> None:
    row: Json = {"prompt": "2 + 2?", "reasoning": "{answer}", "response": "It is 4."}
    (found,) = parse(row, "prompt_response", reasoning="[THINK]{reasoning}[/THINK]{answer}")
    assert isinstance(found, Draft)
    assert found.response == "[THINK]{answer}[/THINK]It is 4."


def test_a_short_answer_after_reasoning_is_the_explicit_answer_too() -> None:
    found = draft({"question": "2 + 2?", "reasoning": THOUGHT, "answer": "4"}, "prompt_response")
    assert (found.response, found.answer) == (f"<think>\n{THOUGHT}\n</think>\n\n4", "4")


def test_mapped_reasoning_goes_before_its_response() -> None:
    row = {"q": "2 + 2?", "a": "It is 4.", "b": "Four.", "thoughts_of": {"a": THOUGHT}}
    mapped = columns(prompt="q", response="a", reasoning="thoughts_of.a")
    assert draft(row, "prompt_response", mapped).response == JOINED
    both = columns(prompt="q", response=["a", "b"], reasoning=["thoughts_of.a", None])
    assert [found.response for found in drafts(row, "prompt_response", both)] == [JOINED, "Four."]


def test_what_is_no_reasoning_stays_in_extra() -> None:
    row = {"prompt": "2 + 2?", "reasoning": {"effort": "high"}, "response": "It is 4."}
    found = draft(row, "prompt_response")
    assert (found.response, json.loads(found.extra)) == ("It is 4.", {"reasoning": {"effort": "high"}})
    several = {"prompt": "2 + 2?", "reasoning": THOUGHT, "responses": ["It is 4.", "Four."]}
    assert all(json.loads(one.extra) == {"reasoning": THOUGHT} for one in drafts(several, "prompt_response"))
    each = {"prompt": "2 + 2?", "reasoning": [THOUGHT, "Hm."], "responses": ["It is 4.", "Four."]}
    assert [one.response for one in drafts(each, "prompt_response")] == [JOINED, "<think>\nHm.\n</think>\n\nFour."]


def test_every_writer_of_s1k_is_a_candidate() -> None:
    row = {
        "question": "2 + 2?",
        "solution": "4",
        "thinking_trajectories": [THOUGHT],
        "attempt": "It is 4.",
        "deepseek_thinking_trajectory": "Hm.",
        "deepseek_attempt": "Four.",
        "gemini_grade": "Yes",
    }
    first, second = drafts(row, "s1k")
    assert (first.response, first.generator, first.answer) == (JOINED, None, "4")
    assert (second.response, second.generator, second.answer) == ("<think>\nHm.\n</think>\n\nFour.", "deepseek", "4")
    assert json.loads(first.extra) == {"gemini_grade": "Yes"}


def test_stepwise_rows_are_one_response_with_steps() -> None:
    found = draft(ROWS["stepwise"], "stepwise")
    assert (found.response, found.steps) == ("Add them.\nIt is 4.", ("Add them.", "It is 4."))
    assert json.loads(found.extra) == {"labels": [True, True]}


def test_other_keys_of_turns_are_kept() -> None:
    call = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}]
    turns = [
        {"role": "system", "content": None},
        {"role": "user", "content": "2 + 2?", "name": "ann", "weight": None},
        {"role": "assistant", "content": None, "tool_calls": call, "reasoning_content": "I call."},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
        {"role": "assistant", "content": "It is 4."},
    ]
    found = draft({"messages": turns}, "messages")
    assert json.loads(found.extra)["turns"] == {"2": {"reasoning": "I call."}}
    # What chat templates read stays in the turns, and is part of the prompt's identity.
    assert [turn.record() for turn in found.turns] == [
        {"role": "user", "content": "2 + 2?", "name": "ann"},
        {"role": "assistant", "content": "", "tool_calls": call},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
    ]
    own = {"messages": turns, "turns": 3}
    assert json.loads(draft(own, "messages").extra)["turns"] == 3
    assert json.loads(draft(own, "messages").extra)["_turns"]["2"] == {"reasoning": "I call."}
    chosen = [{"role": "assistant", "content": "4", "weight": 1}]
    pair: Json = {"prompt": turns[1:2], "chosen": chosen, "rejected": "5"}
    assert json.loads(drafts(pair, "preference")[0].extra) == {
        "response_turns": {"0": {"weight": 1}},
        "preference": "chosen",
    }
    assert refusal({"messages": [{"role": "user", "content": None, "name": "ann"}]}, "messages") == "wrong_type"


CALL = {"name": "add", "arguments": {"a": 2, "b": 2}}


@pytest.mark.parametrize(
    ("held", "kept"),
    [
        ({"tool_calls": [{"id": "c1", "type": "function", "function": CALL}]}, "c1"),
        ({"tool_calls": [CALL]}, None),
        ({"function_call": CALL | {"arguments": '{"a": 2,"b": 2}'}}, None),
    ],
    ids=["openai", "plain", "legacy"],
)
def test_calls_of_a_turn_have_one_shape(held: Json, kept: str | None) -> None:
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": None} | held]
    asked = draft({"messages": [*turns, {"role": "tool", "content": "4"}, *ANSWERED]}, "messages")
    call: Any
    (call,) = asked.turns[1].record()["tool_calls"]  # type: ignore[misc]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("add", {"a": 2, "b": 2})
    assert call.get("id") == kept
    assert asked.extra == "{}"


ANSWERED = [{"role": "assistant", "content": "It is 4."}]


def test_calls_of_an_odd_shape_are_kept_as_they_are() -> None:
    for odd in ([{"function": {"name": "add"}, "cost": 1}], ["add"], [], "add(2, 2)", [{"name": 5}]):
        turns = [{"role": "assistant", "content": "I call.", "tool_calls": odd}, *ANSWERED]
        found = draft({"messages": [{"role": "user", "content": "2 + 2?"}, *turns]}, "messages")
        assert json.loads(found.extra)["turns"]["1"]["tool_calls"] == odd
        assert found.turns[1].beside == ""


def test_a_response_may_consist_of_tool_calls() -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}] * 2
    turns: list[Json] = [USER.record(), {"role": "assistant", "content": None, "tool_calls": calls}]
    found = draft({"messages": turns}, "messages")
    written = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 2}}\n</tool_call>'
    assert found.response == f"{written}\n{written}"
    assert json.loads(found.extra)["turns"]["1"]["tool_calls"] == calls
    turns[-1] |= {"content": "I add.", "reasoning_content": "Two numbers."}
    (found,) = parse({"messages": turns}, "messages", tool_call="[{call}]")  # type: ignore[assignment]
    assert found.response.startswith("<think>\nTwo numbers.\n</think>\n\nI add.\n[{")
    # Arguments that are no object stay as they are.
    turns[-1]["tool_calls"] = [{"function": {"name": "say", "arguments": 'not "JSON"'}}]
    assert json.loads(draft({"messages": turns}, "messages").response.split("\n")[-2]) == {
        "name": "say",
        "arguments": 'not "JSON"',
    }


def test_a_turn_that_holds_calls_needs_no_content() -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}]
    called: Json = {"role": "assistant", "tool_calls": calls}
    turns = [USER.record(), called, {"role": "tool", "content": "4"}, {"role": "assistant", "content": "It is 4."}]
    found = draft({"messages": turns}, "messages")
    assert json.loads(found.turns[1].beside) == {"tool_calls": calls}
    written = '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    assert draft({"messages": turns[:2]}, "messages").response == written
    assert draft({"prompt": turns[:1], "completion": [called]}, "prompt_response").response == written
    thinking = {"role": "assistant", "reasoning_content": "Two twos."}
    assert draft({"messages": [USER.record(), thinking]}, "messages").response == "<think>\nTwo twos.\n</think>"


def test_a_response_of_several_turns_keeps_the_prompt_before_it() -> None:
    call = [{"function": {"name": "add", "arguments": "{}"}, "index": None}]
    said: list[Json] = [{"role": "assistant", "content": "", "tool_calls": call}, {"role": "tool", "content": "4"}]
    for prompt in ("2 + 2?", [USER.record()]):
        found = draft({"prompt": prompt, "completion": [*said, *ANSWERED]}, "prompt_response")
        assert [turn.role for turn in found.turns] == ["user", "assistant", "tool"]
        assert (found.turns[0], found.response) == (USER, "It is 4.")
    # A completion that repeats the prompt does not double it, and turns of the assistant alone are candidates.
    whole = draft({"prompt": "2 + 2?", "completion": [USER.record(), *ANSWERED]}, "prompt_response")
    assert whole.turns == (USER,)
    several = drafts({"prompt": "2 + 2?", "responses": ANSWERED * 2}, "prompt_response")
    assert [(one.turns, one.response) for one in several] == [((USER,), "It is 4.")] * 2


def test_calls_of_an_unknown_shape_are_named() -> None:
    turns = [USER.record(), {"role": "assistant", "content": "", "tool_calls": [{"do": "add"}]}]
    with pytest.raises(Refused, match="tool calls, of an unknown shape"):
        raise parse({"messages": turns}, "messages")[0]  # type: ignore[misc]


def test_reasoning_that_is_blank_hides_no_other() -> None:
    last = {"role": "assistant", "content": "It is 4.", "reasoning_content": "", "reasoning": "Add."}
    assert draft({"messages": [USER.record(), last]}, "messages").response == "<think>\nAdd.\n</think>\n\nIt is 4."
    row = {"prompt": "2 + 2?", "thinking": "Add.", "reasoning": " ", "response": "It is 4."}
    assert draft(row, "prompt_response").response == "<think>\nAdd.\n</think>\n\nIt is 4."
    # A tag that is left open is closed, and a short thought may occur in the answer.
    row |= {"thinking": "<think>Add."}
    assert draft(row, "prompt_response").response == "<think>Add.\n</think>\n\nIt is 4."
    assert draft(row | {"thinking": "4"}, "prompt_response").response.startswith("<think>\n4\n</think>")


def test_turns_that_are_not_trained_on_are_no_response() -> None:
    asked, said = USER.record(), {"role": "assistant", "content": "4"}
    switches: list[Json] = [{"loss": False}, {"train": False}, {"weight": 0}]
    for off in switches:
        assert refusal({"messages": [asked, said | off]}, "messages") == "not_trained"
        assert draft({"messages": [asked, said | off, asked, said]}, "messages").response == "4"
        # The last turn to train on is the response; what follows is kept.
        following = [asked, {"role": "assistant", "content": "5"} | off]
        found = draft({"messages": [asked, said, *following]}, "messages")
        assert (found.turns, found.response) == ((USER,), "4")
        assert json.loads(found.extra) == {"following_turns": following}
        pair: Json = {"prompt": "2 + 2?", "chosen": [said | off], "rejected": [said]}
        first, second = parse(pair, "preference")
        assert isinstance(first, Refused)
        assert first.reason == "not_trained"
        assert isinstance(second, Draft)


def test_roles_are_mapped() -> None:
    turns = [
        {"role": "user", "content": "List."},
        {"role": "Environment", "content": "a.txt"},
        {"role": "Agent", "content": "It is a.txt."},
    ]
    with pytest.raises(Refused, match=r"corpus\.roles"):
        parse({"messages": turns}, "messages")
    (found,) = parse({"messages": turns}, "messages", roles={"environment": "tool", "agent": "assistant"})
    assert isinstance(found, Draft)
    assert [turn.role for turn in found.turns] == ["user", "tool"]
    assert found.response == "It is a.txt."
    lines = [
        {"from": "human", "value": "2 + 2?"},
        {"from": "function_call", "value": '{"name": "add"}'},
        {"from": "observation", "value": "4"},
        {"from": "gpt", "value": "4"},
    ]
    assert [turn.role for turn in draft({"conversations": lines}, "sharegpt").turns] == ["user", "assistant", "tool"]


def test_each_row_of_a_file_is_read_by_its_own_shape() -> None:
    rows = [dict.fromkeys(["prompt", "messages", "instruction", "output", "conversations"]) | row for row in MIXED]
    for given in (MIXED, rows):
        found = read(jsonl(*given))
        assert found.accepted["response"].to_list() == ["4"] * len(MIXED)
    # Whoever names a format means all rows.
    assert read(jsonl(*MIXED), format="alpaca").accepted.height == 1


MIXED: list[Json] = [ROWS["messages"], ROWS["messages"], ROWS["alpaca"], ROWS["sharegpt"], ROWS["prompt_response"]]


def test_refusals_name_the_shape() -> None:
    asked = {"role": "user", "content": "2 + 2?"}
    found = read(jsonl(ROWS["messages"], {"messages": [asked]}, {"messages": []}, {"other": 1}))
    details = found.rejected["detail"].to_list()
    assert "the last turn is the user's" in details[0]
    assert all("(Read as messages.)" in detail for detail in details)


def test_a_turn_that_is_no_list_may_be_chosen_or_rejected() -> None:
    row: Json = {
        "conversations": [{"from": "human", "value": "2 + 2?"}],
        "chosen": {"from": "gpt", "value": "4"},
        "rejected": {"from": "gpt", "value": "5"},
    }
    found = drafts(row, str(detect([row])))
    assert [(one.turns, one.response) for one in found] == [((USER,), "4"), ((USER,), "5")]
