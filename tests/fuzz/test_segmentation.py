"""Texts that nobody wrote, cut into steps: what holds of every cut, both ways of cutting, and the time it takes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import get_args

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from curation_assets.config.corpus_settings import Segmentation, Strategy
from curation_assets.corpus.explicit_steps import locate_steps
from curation_assets.steps.answers import TAGS, find_answer
from curation_assets.steps.segmentation import Segments, segment
from curation_resources.scoring import tags
from tests.steps.texts import ANSWERS, MARKS, SENTENCES, SPACES, STEPS

ODD_SPACES = ["\u200b", "\u2060", "\ufeff", "\u180e", "\u3000", "\u2007", "\u202f", "\u205f", "\u1680", "\u2029"]
RIGHT_TO_LEFT = ["שלום עולם. ", "مرحبا بالعالم؟ ", "\u202eabc\u202c", "\u2067שלום\u2069", "\u200f", "\u061c", "١٢٣"]
BRACES = ["{", "}", "{{", "}}", "\\{", "\\}", "\\boxed{", "\\boxed{\\boxed{", "\\text{", "$$", "\\[", "\\]", "}}}"]
OTHERS = ["👩\u200d👧", "é", "ß", "ﬁ", "İ", "ſ", "ǅ", "Ⅷ", "½", "𝟙", "\U0010ffff", "\ue000", "\ufffe", "\u0378"]
OTHERS += ["e\u0301\u0301"]
RUNS = st.tuples(
    st.sampled_from([" ", "\n", "x", "{", "*", "#", ".", "=", "1", "\u3002", "<", "\t", "\\", "-", "\u2003"]),
    st.sampled_from([200, 1000]),
).map(lambda run: run[0] * run[1])
PIECES = [*MARKS, *ANSWERS, *STEPS, *SENTENCES, *SPACES, *ODD_SPACES, *RIGHT_TO_LEFT, *BRACES, *OTHERS]
CHARACTERS = st.characters(codec="utf-8", exclude_categories=["Cs"])
WORDS = st.sampled_from(PIECES) | st.text(CHARACTERS, max_size=5) | st.sampled_from(["two words ", "one, ", "x = 4\n"])
TEXTS = st.one_of(
    st.text(CHARACTERS, max_size=200),
    st.lists(WORDS, max_size=40).map("".join),
    st.lists(WORDS | RUNS, max_size=12).map("".join),
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).flatmap(
        lambda some: st.integers(1, 200).map(lambda count: "".join(some) * count)
    ),
)
SAID = st.sampled_from(["4", "x", "{", "}", "\u0663", "שלום", " ", "\n", "</think>"])
FIELDS = st.none() | SAID | TEXTS.map(lambda text: text[:6])
SETTINGS = st.builds(
    Segmentation,
    strategy=st.sampled_from([name for name in get_args(Strategy) if name != "explicit"]),
    min_step_words=st.integers(1, 4),
    max_steps=st.integers(2, 70),
    window_words=st.integers(1, 50),
)


def check(text: str, found: Segments, values: Segmentation) -> None:
    """What holds of every cut."""
    end = len(text) if found.answer is None else found.answer.marker_start
    before = 0
    for low, high in found.steps:
        assert before <= low < high <= end
        assert text[low:high] == text[low:high].strip()
        before = high
    if found.answer is not None:
        assert 0 <= found.answer.marker_start <= found.answer.start < found.answer.end <= len(text)
    assert len(found.steps) <= values.max_steps
    assert not found.merged or len(found.steps) == values.max_steps


def check_cover(text: str, found: Segments, values: Segmentation) -> None:
    """What the strategies that look for their own cuts leave out: marks, and what is too short beside what is not."""
    end = len(text) if found.answer is None else found.answer.marker_start
    marked = {place for tag in TAGS.finditer(text, 0, end) for place in range(*tag.span())}
    told = {place for place in range(end) if not text[place].isspace()} - marked
    inside = {place for span in found.steps for place in range(*span)}
    assert found.merged or not inside & marked
    assert bool(told) == bool(found.steps)
    if told - inside:
        assert values.min_step_words > 1
        assert max(len(text[low:high].split()) for low, high in found.steps) >= values.min_step_words


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXTS, FIELDS, SETTINGS)
@example("a\u2028b\u2029c\x85d", None, Segmentation(strategy="lines", min_step_words=1))
@example("\u202eabc. Def ghi. Jkl mno.\u202c", None, Segmentation(strategy="sentences", min_step_words=1))
def test_what_holds_of_every_cut(text: str, field: str | None, values: Segmentation) -> None:
    found = segment(text, values, None, field)
    check(text, found, values)
    check_cover(text, found, values)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(TEXTS, max_size=6), st.sampled_from(["", " ", "\n", "\n\n", "</think>", "\u3000"]), FIELDS, SETTINGS)
def test_listed_steps_are_found(steps: list[str], between: str, field: str | None, values: Segmentation) -> None:
    text = between.join(steps) + "Answer: 4"
    listed = values.model_copy(update={"strategy": "explicit"})
    assert locate_steps(text, steps) is not None
    check(text, segment(text, listed, steps, field), listed)


# Time: four times as much takes four times as long, where it is linear, and sixteen times where it is not.

FACTOR, MOST = 4, 9.0
LEAST_SECONDS = 0.02


def seconds(work: Callable[[int], object], size: int) -> float:
    best = float("inf")
    for _ in range(3):
        begun = time.process_time()
        work(size)
        best = min(best, time.process_time() - begun)
    return best


def assert_no_worse_than_linear(work: Callable[[int], object], size: int) -> None:
    small = max(seconds(work, size), LEAST_SECONDS)
    assert seconds(work, FACTOR * size) < MOST * small


ADVERSARIAL = [" ", "\n", "\t", "a", ".", "!", "*", "#", "{", "}", "\\", "<", "</", "1", "\u3002", "\u3000", "\\boxed{"]
ADVERSARIAL += ["<think>", "</think>", "<|", "Answer:", "answer: \n", "A:\n", "#### ", "####\n", "\n \n", " \n", "**"]
ADVERSARIAL += ["Step 1", "\nStep 1:", "1. ", "\n1. ", ". Step 1 ", "* ", "_*", "e.g. ", "J. ", '..."', "?!)", "a. "]
ADVERSARIAL += ["final answer", "x</think>", "{}\\boxed{4}", "4 \\boxed{4} ", "<answer>4</answer>", "\u202e.", "\\{\\}"]


@pytest.mark.parametrize("piece", ADVERSARIAL)
def test_no_text_takes_more_than_linear_time(piece: str) -> None:
    for field in (None, "4"):

        def alone(size: int, field: str | None = field) -> None:
            text = piece * (size // len(piece))
            segment(text, Segmentation(), None, field)

        assert_no_worse_than_linear(alone, 10_000)


def test_listed_steps_and_marks_take_no_more_than_linear_time() -> None:
    def alone(size: int) -> None:
        segment("x</think>" * size, Segmentation(), ["x"] * size)

    assert_no_worse_than_linear(alone, 500)


def test_white_space_around_tags_takes_no_more_than_linear_time() -> None:
    for text in ("<think>", "</think>"):
        for space in (" ", "\n", "\u3000"):

            def find(size: int, text: str = text, space: str = space) -> None:
                list(tags.TAGS.finditer(text + "x" + space * size + "x"))

            assert_no_worse_than_linear(find, 10_000)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["<think>", "</think>", " ", "\n\u3000", "x", "think>"]), max_size=12).map("".join))
def test_tags_are_found_as_plainly(text: str) -> None:
    plain = re.compile(r"\s*</?think>\s*")
    assert [tag.span() for tag in tags.TAGS.finditer(text)] == [tag.span() for tag in plain.finditer(text)]


@pytest.mark.parametrize("piece", ADVERSARIAL)
def test_no_answer_takes_more_than_linear_time(piece: str) -> None:
    def find(size: int) -> None:
        text = piece * (size // len(piece))
        find_answer(text, None)
        find_answer(text, piece[:2])
        find_answer(text + "Answer: " + text)

    assert_no_worse_than_linear(find, 10_000)
