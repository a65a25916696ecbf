"""Where answers are found, marker by marker, and where they are not."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation_assets.steps.answers import find_answer


def found(response: str, field: str | None = None) -> tuple[str, str, str] | None:
    """(answer, text before the marker without white space at its end, name of the marker)."""
    answer = find_answer(response, field)
    if answer is None:
        return None
    assert 0 <= answer.marker_start <= answer.start < answer.end <= len(response)
    return response[answer.start : answer.end], response[: answer.marker_start].rstrip(), answer.marker


@pytest.mark.parametrize(
    ("response", "answer", "before", "marker"),
    [
        ("Work.\n†Answer: B", "B", "Work.\n", "dagger"),
        ("Answer: A\n†Answer: B\nA: C", "B", "Answer: A\n", "dagger"),
        ("Work.\nAnswer: 42", "42", "Work.\n", "label"),
        ("Work.\nAnswer: **42**", "42", "Work.\n", "label"),
        ("Work.\n**Answer:** 42", "42", "Work.\n", "label"),
        ("Work.\n**Answer**: 42", "42", "Work.\n", "label"),
        ("Work.\n**Answer: 42**", "42", "Work.\n", "label"),
        ("Work.\n### Final Answer\n\n42 m\n", "42 m", "Work.\n", "label"),
        ("Work.\n### Final Answer\r\n42\r\n", "42", "Work.\n", "label"),
        ("Work.\nFinal Answer: 42\nThanks.", "42", "Work.\n", "label"),
        ("Work.\nANSWER:\nx = 1\ny = 2\n\nBye.", "x = 1\ny = 2", "Work.\n", "label"),
        ("Answer: 1. No.\nAnswer: 2", "2", "Answer: 1. No.\n", "label"),
        ("Work.\nA: 18", "18", "Work.\n", "label"),
        ("Answer: 3\nMore.\nA: 18", "18", "Answer: 3\nMore.\n", "label"),
        ("Work.\nAnswer\uff1a42", "42", "Work.\n", "label"),
        ("<think>\nAnswer: 1\n</think>\nAnswer: 2", "2", "<think>\nAnswer: 1\n</think>\n", "label"),
        ("<think>\nAnswer: 1\n</think>\n\nIt is 2.", "It is 2.", "<think>\nAnswer: 1\n", "think"),
        ("<think>hm</think><answer>2</answer>", "2", "<think>hm", "think"),
        ("<think>hm</think>So \\boxed{2}.", "So \\boxed{2}.", "<think>hm", "think"),
        ("Work.\n**Final Answer**\n\\[ \\boxed{42} \\]", "42", "Work.\n", "label"),
        ("Work.\nAnswer: so $\\boxed{42}$", "so $\\boxed{42}$", "Work.\n", "label"),
        ("<think>hm</think>\n$$\\boxed{x_1}$$.", "x_1", "<think>hm", "think"),
        ("One.\nTwo.\n#### 72", "72", "One.\nTwo.\n", "hashes"),
        ("One. Two. #### 1,000\n\n", "1,000", "One. Two. ", "hashes"),
        ("So \\boxed{2} and $\\boxed{\\frac{1}{2}}$. Done.", "\\frac{1}{2}", "So \\boxed{2} and ", "boxed"),
        ("So \\boxed{\\{1, 2\\}}", "\\{1, 2\\}", "So ", "boxed"),
        ("#### 5. Heading\nSo \\boxed{3}", "3", "#### 5. Heading\nSo ", "boxed"),
        ("Plan A: go\nThen \\boxed{3}", "3", "Plan A: go\nThen ", "boxed"),
        ("A: 1\nB: 2\nSo \\boxed{2}", "2", "A: 1\nB: 2\nSo ", "boxed"),
        ("Answer:\n\\boxed{}\n#### 7", "\\boxed{}\n#### 7", "", "label"),
        ("Work.\n#### 7\nAnswer:   ", "Answer:", "Work.\n#### 7\n", "none"),
        ("the final answer is not here, \\boxed{3}", "3", "the final answer is not here, ", "boxed"),
        # Phrases, with or without a colon.
        ("Pens.\nThe answer is: 6", "6", "Pens.", "label"),
        ("Pens.\n#### 12\nThe answer is: 12", "12", "Pens.", "label"),
        ("Add. So the final answer is $6$. Done.", "$6$", "Add. ", "label"),
        ("Add.\nSo the answer is (B).", "(B)", "Add.", "label"),
        ("Add.\nTherefore, the correct option is C.", "C", "Add.", "label"),
        ("Add.\nThe answer is 3.5 m. That is long.", "3.5 m", "Add.", "label"),
        ("The answer is 3, I thought.\nNo.\n#### 4", "4", "The answer is 3, I thought.\nNo.\n", "hashes"),
        ("My answer is correct since all of these steps hold.\nSo \\boxed{4}", "4", None, "boxed"),
        ("The answer is not clear at all.\nSo \\boxed{4}", "4", None, "boxed"),
        ("Add.\nThe answer is: \n\n4 m", "4 m", "Add.", "label"),
        ("Add.\n\n**Answer**\n\n42", "42", "Add.", "label"),
        ("Add.\n## Answer\n42", "42", "Add.", "label"),
        ("So $\\boxed 5$.", "5", "So ", "boxed"),
        ("So \\boxed5", "5", "So ", "boxed"),
        ("So \\boxed x.", "x", "So ", "boxed"),
        ("So \\fbox{5}.", "5", "So ", "boxed"),
        # A phrase is no answer where it states none, where a thought goes on, and where a box follows.
        ("So we get \\boxed{7}. The answer is reasonable.", "7", None, "boxed"),
        ("\\boxed{7}\n\nThis answer is Paris-like.", "7", None, "boxed"),
        ("The answer is 7. Wait, recompute: 3 + 5 = 8.\n\nThen \\boxed{8}", "8", None, "boxed"),
        ("The answer is: in the next section.\nSo \\boxed{8}.", "8", None, "boxed"),
        ("The answer is Dr. Smith.", "Dr. Smith", "", "label"),
        ("The answer is J. R. R. Tolkien.", "J. R. R. Tolkien", "", "label"),
        ("The answer is 42 because 6*7 = 42", "42", "", "label"),
        ("The answer is yes, since 2 is prime.", "yes", "", "label"),
        ("The answer is 5, which is prime.", "5", "", "label"),
        ("The answer is = 7.", "7", "", "label"),
        # Other scripts and languages.
        ("先算。\n\n答案：12", "12", "先算。", "label"),
        ("先算，等于十二。所以答案是12。", "12", "先算，等于十二。", "label"),
        ("因此，答案为\\boxed{13}。", "13", "", "label"),
        ("答：12", "12", "", "label"),
        ("十二です。答えは12です。", "12", "十二です。", "label"),
        ("계산합니다. 정답은 12입니다.", "12", "계산합니다. ", "label"),
        ("أولا نضرب. الجواب: 12", "12", "أولا نضرب. ", "label"),
        ("परिणाम बारह है। उत्तर: 12", "12", "परिणाम बारह है। ", "label"),
        ("ดังนั้นคำตอบคือเก้า", "เก้า", "", "label"),
        ("Addition.\nRéponse : 12", "12", "Addition.", "label"),
        # Words before a label belong to it.
        ("检查。\n最终答案：12", "12", "检查。", "label"),
        ("確認する。最終的な答え：12", "12", "確認する。", "label"),
        ("Add.\nThe **final answer:** 12", "12", "Add.", "label"),
        ("Add.\n**So the correct answer:** 12", "12", "Add.", "label"),
        ("Suma.\nLa respuesta: 12", "12", "Suma.", "label"),
        ("That is correct.\nAnswer: 12", "12", "That is correct.", "label"),
        # Thinking marks of other models.
        ("<thinking>Add: 1.\nAnswer: 1</thinking>\n<output>4</output>", "4", "<thinking>Add: 1.\nAnswer: 1", "think"),
        ("[THINK]Answer: 1[/THINK]It is 4.", "It is 4.", "[THINK]Answer: 1", "think"),
        ("<seed:think>Add.</seed:think>It is 4.", "It is 4.", "<seed:think>Add.", "think"),
        (
            "<|channel|>analysis<|message|>Add.<|end|><|start|>assistant<|channel|>final<|message|>It is 4.<|return|>",
            "It is 4.",
            "<|channel|>analysis<|message|>Add.<|end|><|start|>assistant",
            "think",
        ),
        # Code that prints a label is no answer, unless nothing follows it.
        ("```\nprint('Answer: 4')\n```\nSo \\boxed{5}", "5", None, "boxed"),
        ("It prints:\n```\nAnswer: 4\n```", "4", "It prints:\n```", "label"),
    ],
)
def test_markers(response: str, answer: str, before: str | None, marker: str) -> None:
    if marker == "none":
        # The label is empty, and text follows the hashes: nothing is an answer.
        assert found(response) is None
    else:
        expected = (answer, None if before is None else before.rstrip(), marker)
        shown = found(response)
        assert shown is not None
        assert (shown[0], before and shown[1], shown[2]) == expected


@pytest.mark.parametrize(
    "response",
    [
        "I think the answer is 7. Wait, recompute: 3+5=8.\n\nTherefore we get 8.",
        "The answer is in the next section. We compute.",
        "The answer would be 7 if x were 2.",
        "The best option is to walk.",
        "",
        " ",
        "No answer here.",
        "Plan A: go",
        "Answer:",
        "Answer: **",
        "So \\boxed{}",
        "So \\boxed{2",
        "####",
        "A:\n",
    ],
)
def test_no_answer(response: str) -> None:
    assert found(response) is None


def test_an_empty_marker_lets_the_next_one_try() -> None:
    assert found("†Answer: \n\n") is None
    assert found("\\boxed{3} †Answer:") == ("3", "", "boxed")
    assert found("<think>so \\boxed{3}</think>  ") == ("3", "<think>so", "boxed")


def test_openthoughts_solution_blocks() -> None:
    thought = "<|begin_of_thought|>\nAnswer: 1, or \\boxed{0}?\n<|end_of_thought|>\n"
    block = "<|begin_of_solution|>\n{}\n<|end_of_solution|>"
    assert found(thought + block.format("Add. So $\\boxed{2}$.")) == (
        "2",
        thought + "<|begin_of_solution|>\nAdd. So",
        "boxed",
    )
    assert found(thought + block.format("Add.\nAnswer: 2")) == ("2", thought + "<|begin_of_solution|>\nAdd.", "label")
    assert found(thought + block.format("Just 2.")) == ("Just 2.", thought.rstrip(), "solution")
    assert found(thought + "<|begin_of_solution|>\nJust 2.") == ("Just 2.", thought.rstrip(), "solution")


@pytest.mark.parametrize(
    ("response", "field", "expected"),
    [
        ("6 * 7 = 42", "42", ("42", "6 * 7 = ", "field")),
        ("It is **42**.", " 42 ", ("42", "It is ", "field")),
        ("Sum.\n#### 42", "42", ("42", "Sum.\n", "field")),
        ("Sum.\nAnswer: $42$.", "42", ("42", "Sum.\n", "field")),
        ("Sum. So $\\boxed{42}$.", "42", ("42", "Sum. So ", "field")),
        ("Answer: 1\nIt is 42.", "42", ("42", "Answer: 1\nIt is ", "field")),
        ("<think>x</think>So it is 42.<|im_end|>", "42", ("42", "<think>x</think>So it is ", "field")),
        ("<answer>42</answer>", "42", ("42", "<answer>", "field")),
        ("It is 42 clips.", "42", None),
        ("It is 142", "42", None),
        ("It is 40_9.", "9", None),
        ("It is 3.5", "5", None),
        ("It is 1,005", "005", None),
        ("It is 42.5", "42", None),
        ("It is -5", "5", None),
        ("It is 7-5", "5", ("5", "It is 7-", "field")),
        ("It is 1/2", "2", None),
        ("It is x^5", "5", None),
        ("It is $\\frac{1}{2}$", "2", None),
        ("So the answer is 42.", "42", ("42", "", "field")),
        ("It is 42.\nAnswer: 43", "42", ("43", "It is 42.\n", "label")),
        ("Answer: 7", "", ("7", "", "label")),
    ],
)
def test_explicit_answers(response: str, field: str, expected: tuple[str, str, str] | None) -> None:
    if expected is not None:
        expected = (expected[0], expected[1].rstrip(), expected[2])
    assert found(response, field) == expected


PIECES = ["Answer:", "A:", "†Answer:", "Final Answer", "####", "\\boxed{", "}", "</think>", "<think>", "\n", "\n\n"]
PIECES += [
    " ",
    "4",
    "**",
    "x y z",
    "<|begin_of_solution|>",
    "<|end_of_solution|>",
    ".",
    "B:",
    "<answer>",
    "\\",
    "```\n",
    "answer is ",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=30)


@given(TEXTS, st.none() | st.sampled_from(["4", "x y z", ".", " ", "**"]))
def test_an_answer_is_a_trimmed_span_behind_its_marker(response: str, field: str | None) -> None:
    answer = find_answer(response, field)
    if answer is not None:
        assert 0 <= answer.marker_start <= answer.start < answer.end <= len(response)
        said = response[answer.start : answer.end]
        assert said == said.strip()


@pytest.mark.parametrize(
    "piece", ["Answer:", "\\boxed{", "#", "*", " ", "<", "†", "\n", "A:\n", "</think>", "Final  ", "4"]
)
def test_no_text_takes_more_than_linear_time(piece: str) -> None:
    begin = time.process_time()
    find_answer(piece * 300_000, "4")
    assert time.process_time() - begin < 5
