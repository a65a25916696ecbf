"""Cases of row shapes: conversations, reasoning beside answers, several formats in one file, JSON that is odd."""

from __future__ import annotations

import json
from pathlib import Path

from curation_assets.corpus.reading import ShardRows
from curation_resources.storage.digests import DigestCache
from curation_resources.storage.landing import FolderLanding
from tests.cases.findings import Case, Findings, extra_of, texts_of, thought, turns_of
from tests.corpus.helpers import jsonl, read

ROOM = "How large is a 4 by 6 room?"
CALL = {"id": "c1", "type": "function", "function": {"name": "area", "arguments": '{"w": 4, "h": 6}'}}
CALL_TEXT = '<tool_call>\n{"name": "area", "arguments": {"w": 4, "h": 6}}\n</tool_call>'
STEPS_OF_ROOM = "Step 1: the tool gave 24.\nStep 2: so the room has 24 square units.\nAnswer: 24"


def tool_calls(folder: Path, found: Findings) -> None:
    """Rows 0-2 call a tool in the prompt, rows 3-5 end in a call, row 6 calls none."""
    rows = found.file(
        folder / "landing" / "tools.jsonl",
        [
            STEPS_OF_ROOM,
            STEPS_OF_ROOM,
            STEPS_OF_ROOM,
            f"Let me measure it.\nI call area with 4 and 6.\n{CALL_TEXT}",
            CALL_TEXT,
            CALL_TEXT,
            "Plain answer, no tool.\nIt is 24.\nAnswer: 24",
        ],
    )
    ask = {"role": "user", "content": ROOM}
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    result = {"role": "tool", "content": '{"area": 24}', "tool_call_id": "c1"}
    for row in present(rows, range(3)):
        found.equal(f"turns of row {row}", turns_of(rows, row), [ask, called, result])
    for row in present(rows, range(3, 6)):
        found.equal(f"turns of row {row}", turns_of(rows, row), [ask])
        found.equal(
            f"the call of row {row}, with its id", extra_of(rows, row), {"turns": {"1": {"tool_calls": [CALL]}}}
        )
    found.equal("tools of row 0", extra_of(rows, 0), {"tools": [{"type": "function", "function": {"name": "area"}}]})


OF_156 = "12 times 10 is 120.\n\n12 times 3 is 36.\n\nTogether that is 156."
OF_168 = "12 times 10 is 120.\n\n12 times 4 is 48.\n\nTogether that is 168."


def reasoning_content(folder: Path, found: Findings) -> None:
    """Reasoning in fields of turns, and of rows."""
    api = found.file(
        folder / "landing" / "api.jsonl",
        [
            thought(OF_156, "It is 156."),
            thought("7 times 8: 7 times 4 is 28, doubled is 56.", "56"),
            thought("9 times 8 is 80 less 8, which is 72.", "72"),
            thought("5 times 8 is half of 80, that is 40."),
        ],
    )
    found.equal("extra", [extra_of(api, row) for row in range(4)], [{}] * 4)
    found.equal("steps and answer", texts_of(api, 0), (OF_156.split("\n\n"), "It is 156."))
    found.file(
        folder / "landing" / "fields.jsonl",
        [
            thought(OF_156, "It is 156."),
            thought(OF_168, "It is 168."),
            thought("12 times 10 is 120.\n\n12 times 5 is 60.", "It is 180."),
        ],
    )


def content_parts(folder: Path, found: Findings) -> None:
    """Contents as lists of parts, as one part, as null; rows 1 and 8 hold what is no text."""
    rows = found.file(
        folder / "landing" / "parts.jsonl",
        {
            0: thought("3 plus 9 is 12.", "It is 12."),
            2: "It is 10.",
            3: "It is 9.",
            4: "It is 8.",
            5: "It is 7.",
            6: "It is 6.",
            7: "It is 5.",
        },
        {1: ("wrong_type", "'tool_use'"), 8: ("wrong_type", "messages must be a list of turns, not text")},
    )
    for row, number in ((0, 9), (2, 7), (3, 6), (4, 5), (5, 4), (6, 3), (7, 2)):
        ask = {"role": "user", "content": f"What is 3 plus {number}?"}
        found.equal(f"turns of row {row}", turns_of(rows, row), [ask])
    table = found.file(folder / "landing" / "qwen_vl_text_only.parquet", ["A cat has four legs."])
    found.equal("turns of the table", turns_of(table, 0), [{"role": "user", "content": "How many legs has a cat?"}])
    found.equal("images of the table", table.accepted["images"].to_list(), [[]])


def s1k(folder: Path, found: Findings) -> None:
    """A candidate for each writer, with its trajectory; the solution is the explicit answer."""
    rows = found.file(
        folder / "landing" / "s1k.jsonl",
        {
            (0, 0): thought(
                "2^7 is 128.\n\nCheck: 2^6 is 64, twice that is 128.",
                "Each factor doubles.\n\nTherefore \\boxed{128}.",
            ),
            (0, 1): thought("Doubling seven times: 2, 4, 8, 16, 32, 64, 128.", "It is \\boxed{128}."),
            (1, 0): thought("3 times 3.\n\nNine.", "\\boxed{9}"),
            (1, 1): thought("3*3=9.", "\\boxed{9}"),
        },
    )
    found.equal("answers", rows.accepted["answer"].to_list(), ["128", "128", "9", "9"])
    found.equal("writers", rows.accepted["generator"].to_list(), [None, "deepseek"] * 2)
    found.equal("prompt groups", rows.accepted["prompt_id"].n_unique(), 2)
    found.equal("ids", rows.accepted["sample_id"].n_unique(), 4)


def stepwise(folder: Path, found: Findings) -> None:
    """A list of steps with labels is one response; pairs and KTO keep their preference in `extra`."""
    landing = folder / "landing"
    first = ["The whole parts are equal.", "Compare 0.80 with 0.11.", "So 9.8 is larger."]
    second = ["The whole parts are equal.", "0.15 is more than 0.2."]
    rows = found.file(landing / "trl_stepwise.jsonl", ["\n".join(first), "\n".join(second)])
    found.equal("explicit steps", rows.accepted["steps"].to_list(), [first, second])
    found.equal("steps", [texts_of(rows, row)[0] for row in (0, 1)], [first, second])
    found.equal("labels", [extra_of(rows, row)["labels"] for row in (0, 1)], [[True, True, True], [True, False]])
    pairs = found.file(
        landing / "dpo_lf.jsonl",
        {(0, 0): "Hello to you.\nHow are you?", (0, 1): "No.", (1, 0): "Good bye to you.", (1, 1): "No."},
    )
    found.equal("preference", [json.loads(text)["preference"] for text in pairs.accepted["extra"]], PREFERENCES * 2)
    kto = found.file(landing / "kto.jsonl", ["Blue is a colour.\nIt is the sky's.", "A stone is a fruit."])
    found.equal("labels of KTO", [extra_of(kto, row) for row in (0, 1)], [{"label": True}, {"label": False}])
    found.file(landing / "kto_lf.jsonl", ["A hammer is a tool."])
    both = found.file(landing / "ultrafeedback.jsonl", {(0, 0): "Hello.", (0, 1): "Go away."})
    found.equal("turns of both", turns_of(both, 0), [{"role": "user", "content": "Say hello."}])
    # Its labels are signs inside a copy of the text: which columns to map is the user's decision.
    found.file(landing / "math_shepherd.jsonl", {}, {0: ("unknown_format", "unknown fields: input, label, task")})


PREFERENCES = ["chosen", "rejected"]

TWO = "Count on: one, two.\nThat is two.\nAnswer: 2"
NOT_JSON = ("not_json", "Write one JSON object per line")


def json_oddities(folder: Path, found: Findings) -> None:
    """Rows that are JSON are read, the others are named by their number and reason."""
    landing = folder / "landing"
    names = {file.name for file in FolderLanding(landing, DigestCache()).files()}
    found.equal("files that are read", names, {path.name for path in landing.iterdir()})
    found.file(landing / "UPPER.JSONL", [TWO])
    found.file(landing / "array_in_jsonl.jsonl", {}, {0: ("not_object", "the line is a list")})
    found.file(landing / "array_lines.jsonl", {2: TWO}, dict.fromkeys((0, 1, 3), NOT_JSON))
    found.file(landing / "bom_crlf.jsonl", {0: TWO, 2: TWO})
    found.file(landing / "comment.jsonl", {1: TWO}, {0: NOT_JSON})
    found.file(landing / "concatenated.jsonl", {}, {0: NOT_JSON})
    found.equal(
        "the last of two equal keys",
        turns_of(found.file(landing / "dup_keys.jsonl", [TWO]), 0)[0]["content"],
        "second key wins?",
    )
    found.file(landing / "latin1.jsonl", {}, {0: ("invalid_utf8", "Convert the file to UTF-8")})
    mixed = found.file(
        landing / "mixed_types.jsonl",
        {0: TWO, 1: TWO, 2: TWO, 5: "one answer.\nIt is 2."},
        {
            3: ("wrong_type", "prompt must be text, not a number"),
            4: ("wrong_type", "response must be text, not a number"),
            6: ("wrong_type", "prompt[0] must be an object"),
        },
    )
    extras: list[dict[str, object]] = [
        {"meta": {"x": 1}, "level": 3},
        {"meta": "text", "level": "Level 5"},
        {"meta": [1, "a", None], "level": None},
    ]
    found.equal("fields of mixed types", [extra_of(mixed, row) for row in range(3)], extras)
    not_finite = found.file(landing / "nan.jsonl", [TWO] * 3)
    found.equal("NaN and Infinity, counted", not_finite.not_finite, 2)
    found.equal("scores", [extra_of(not_finite, row)["score"] for row in range(3)], [None, None, 1.5])
    found.file(landing / "no_newline_at_end.jsonl", [TWO])
    found.file(landing / "pretty.jsonl", {}, dict.fromkeys(range(4), NOT_JSON))
    found.file(landing / "single_quotes.jsonl", {}, {0: NOT_JSON})
    pair = found.file(landing / "surrogate.jsonl", {0: TWO, 2: TWO}, {1: ("invalid_unicode", "half of a surrogate")})
    found.equal("a surrogate pair", turns_of(pair, 0)[0]["content"], "party \U0001f389?")
    found.equal("an escaped backslash", turns_of(pair, 2)[0]["content"], "escaped backslash \\ud83c is text?")
    found.file(landing / "trailing_comma.jsonl", {}, {0: NOT_JSON, 1: NOT_JSON})
    found.file(landing / "u2028.jsonl", [TWO])
    found.file(landing / "utf16.jsonl", {}, dict.fromkeys(range(2), ("nul_byte", "is UTF-16")))
    _numbers(landing / "big_ints.jsonl", found)


def _numbers(path: Path, found: Findings) -> None:
    texts = (
        "Double a hundred times.\nThat is 1267650600228229401496703205376.",
        "Double.\nThat is 18446744073709551615.",
        "Divide.\nThat is 0.1000000000000000055511151231257827.",
        "Small.\nThat is 1e-7.",
        "Compute.\nThat is 4.0",
        "Compute.\nThat is 1e22",
    )
    rows = found.file(path, texts)
    exact = ["1267650600228229401496703205376", "18446744073709551615", "0.1000000000000000055511151231257827"]
    answers = rows.accepted["answer"].to_list()
    found.equal("answers with every digit", answers[:3], exact)
    found.equal("answers that are found", [texts_of(rows, row)[1] for row in range(3)], exact)
    found.equal("other answers", [float(answer) for answer in answers[3:]], [1e-7, 4.0, 1e22])
    ids = [json.loads(text, parse_int=str).get("id") for text in rows.accepted["extra"]]
    found.equal("ids", ids[:2], ["123456789012345678901234567890", "18446744073709551615"])


ONE_AND_ONE = "One plus one.\nMakes two.\nAnswer: 2"


def mixed_formats(folder: Path, found: Findings) -> None:
    """Each row is read by its own shape; a refusal names the shape that was assumed."""
    landing = folder / "landing"
    for name, prompts in (
        ("cat.jsonl", ["a0", "a1", "a2", "m0", "m1", "s0", "s1", "p0", "p1"]),
        ("switch.jsonl", ["m0", "m1", "a0", "a1", "a2"]),
        ("union.jsonl", ["a0", "a1", "a2", "m0", "m1"]),
    ):
        rows = found.file(landing / name, [ONE_AND_ONE] * len(prompts))
        for row, prompt in enumerate(prompts):
            ask = {"role": "user", "content": f"{prompt}: one plus one?"}
            found.equal(f"{name} row {row}, turns", turns_of(rows, row), [ask])
    ends = found.file(
        landing / "ends.jsonl",
        {4: ONE_AND_ONE, 5: ONE_AND_ONE},
        {
            0: ("missing_response", "the last turn is the user's"),
            1: ("missing_response", "the last turn is the user's"),
            2: ("missing_prompt", "the prompt is missing"),
            3: ("missing_prompt", "has no turns"),
            6: ("unknown_role", "'environment'"),
            7: ("wrong_type", "messages[0].content must be text"),
            8: ("unknown_role", "messages[0]"),
            9: ("unknown_role", "messages[0]"),
        },
    )
    for detail in ends.rejected["detail"]:
        found.contains("the shape that a refusal assumed", detail, "Read as messages")
    earlier = [{"role": "user", "content": "e5?"}, {"role": "assistant", "content": "one"}]
    found.equal("two turns of the assistant", turns_of(ends, 5), earlier)
    mapped = found.file(
        landing / "ends.jsonl",
        {4: ONE_AND_ONE, 5: ONE_AND_ONE, 6: ONE_AND_ONE},
        {
            0: ("missing_response", "the last turn is the user's"),
            1: ("missing_response", "the last turn is the user's"),
            2: ("missing_prompt", "the prompt is missing"),
            3: ("missing_prompt", "has no turns"),
            7: ("wrong_type", "messages[0].content must be text"),
            8: ("unknown_role", "messages[0]"),
            9: ("unknown_role", "messages[0]"),
        },
        roles={"environment": "tool"},
    )
    found.equal("a role that is mapped", turns_of(mapped, 6)[1], {"role": "tool", "content": "ls"})


FOUR = "First I read it.\n\nThen I add two and two.\n\nThat is four."


def reasoning_beside_answer(folder: Path, found: Findings) -> None:
    """The trace is the response, the answer comes after it; samples that differ in reasoning have different ids."""
    landing = folder / "landing"
    ids: dict[str, str] = {}
    for name, answers in (
        ("congliu", ["It is 4.", "It is 5."]),
        ("dolphin_messages", ["It is 4."]),
        ("m23k", ["4"]),
        ("medical_o1", ["It is 4."]),
        ("prompt_reasoning_response", ["It is 4."]),
        ("question_reasoning_answer", ["4"]),
        ("thinking_output", ["It is 4."]),
    ):
        rows = found.file(landing / f"{name}.jsonl", [thought(FOUR, answer) for answer in answers])
        found.equal(f"{name}, steps and answer", texts_of(rows, 0), (FOUR.split("\n\n"), answers[0]))
        ids[name] = rows.accepted["sample_id"][0]
    found.equal("the same sample from other fields", ids["prompt_reasoning_response"], ids["dolphin_messages"])
    path = landing / "prompt_reasoning_response.jsonl"
    record = json.loads(path.read_text())
    other = found_id(record | {"reasoning": "Two and two is four, as everybody knows."})
    found.holds("samples that differ in reasoning alone have one id", other != found_id(record))
    found.equal("the id of the same row", found_id(record), ids["prompt_reasoning_response"])


def found_id(record: dict[str, object]) -> str:
    """Return the id of a row's sample."""
    sample_id: str = read(jsonl(record)).accepted["sample_id"][0]
    return sample_id


def present(rows: ShardRows, wanted: range) -> list[int]:
    """Return the rows of a range that were accepted; those that were not are differences already."""
    accepted = set(rows.accepted["row"])
    return [row for row in wanted if row in accepted]


SHAPES = (
    Case("01-openai-tool-calls", "tool calls stay in turns and responses", tool_calls),
    Case("02-reasoning-content", "reasoning before the answer", reasoning_content),
    Case("05-content-parts", "parts of contents", content_parts),
    Case("07-s1k", "a candidate for each writer", s1k),
    Case("09-stepwise-kto-prm", "steps of one response", stepwise),
    Case("10-json-oddities", "good lines read, bad ones named", json_oddities),
    Case("21-mixed-formats-in-one-file", "rows read by their own shape", mixed_formats),
    Case("34-reasoning-beside-answer", "traces are responses", reasoning_beside_answer),
)
