"""Corruptions: each spoils what it says, and nothing else."""

from __future__ import annotations

import string
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation_assets.evaluation.corruptions import CORRUPTIONS, GROUP, Corruption, Trace, corruptions
from curation_resources import plugins as plugins_module

OWN = Trace(("12 + 30 is 42.", "Half of 42 is 21.", "So 21 are left."), ("", "\n", "\n", "\nAnswer: 21"), (9, 11))
OTHER = Trace(("A dog has 4 legs.", "Two have 8."), ("", " ", "\nAnswer: 8"), (9, 10))
BY_NAME = {one.name: one for one in CORRUPTIONS}


def spoil(name: str, seed: int = 0, own: Trace = OWN, other: Trace = OTHER) -> Trace | None:
    return BY_NAME[name].apply(own, other, Random(seed))


def differing(left: str, right: str) -> int:
    assert len(left) == len(right)
    return sum(a != b for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_one_digit_of_one_step_is_wrong(seed: int) -> None:
    twin = spoil("wrong_number", seed)
    assert twin is not None
    (place,) = twin.changed
    assert differing(OWN.response, twin.response) == 1
    assert differing(OWN.steps[place], twin.steps[place]) == 1
    assert twin.gaps == OWN.gaps


@pytest.mark.parametrize("seed", range(20))
def test_only_the_stated_answer_is_wrong(seed: int) -> None:
    twin = spoil("wrong_answer", seed)
    assert twin is not None
    assert twin.steps == OWN.steps
    assert twin.stated_answer() not in (None, "21")
    assert twin.response.replace(str(twin.stated_answer()), "21") == OWN.response
    assert not twin.stated_answer().startswith("0")  # type: ignore[union-attr]


@pytest.mark.parametrize("given_answer", ["B", "(B)", "b"])
def test_a_choice_becomes_another_choice(given_answer: str) -> None:
    own = Trace(("It is so.",), ("", f"\nAnswer: {given_answer}"), (9, 9 + len(given_answer)))
    for seed in range(10):
        twin = spoil("wrong_answer", seed, own)
        assert twin is not None
        letter = str(twin.stated_answer()).strip("()")
        assert letter.upper() in "ACD"
        assert letter.isupper() == given_answer.strip("()").isupper()


@pytest.mark.parametrize("head", ["Step 3: ", "3. ", "(3) ", "**Step 3:** ", "\u6b65\u9aa4 3\uff1a"])
def test_the_number_that_counts_a_step_is_no_number_of_it(head: str) -> None:
    own = Trace((f"{head}4 + 5 = 9",), ("", ""))
    for seed in range(20):
        twin = spoil("wrong_number", seed, own)
        assert twin is not None
        assert twin.response.startswith(head)
    assert spoil("wrong_number", own=Trace((f"{head}add them",), ("", ""))) is None


def test_digits_of_another_script_stay_in_it() -> None:
    own = Trace(("\u0661\u0662 + \u0663 = \u0661\u0665",), ("", ""))
    for seed in range(20):
        twin = spoil("wrong_number", seed, own)
        assert twin is not None
        assert differing(own.response, twin.response) == 1
        assert all("\u0660" <= sign <= "\u0669" or sign in " +=" for sign in twin.response)


def test_an_answer_in_words_is_taken_from_the_other_trace() -> None:
    own = Trace(("It is so.",), ("", "\nAnswer: the red door"), (9, 21))
    twin = spoil("wrong_answer", own=own)
    assert twin is not None
    assert twin.response == "It is so.\nAnswer: 8"


def test_the_other_response_is_taken_whole() -> None:
    twin = spoil("foreign_response")
    assert twin is not None
    assert twin.response == OTHER.response
    assert twin.stated_answer() == "8"


def test_shuffled_steps_are_the_same_steps_in_another_order() -> None:
    for seed in range(20):
        twin = spoil("shuffled_steps", seed)
        assert twin is not None
        assert sorted(twin.steps) == sorted(OWN.steps)
        assert twin.steps != OWN.steps
        assert len(twin.response) == len(OWN.response)


def test_one_step_is_missing_and_no_line_is_empty() -> None:
    for seed in range(20):
        twin = spoil("dropped_step", seed)
        assert twin is not None
        assert len(twin.steps) == 2
        assert twin.response == "\n".join([*twin.steps, "Answer: 21"])


def test_a_step_stands_there_twice_and_the_second_is_the_changed_one() -> None:
    for seed in range(20):
        twin = spoil("repeated_step", seed)
        assert twin is not None
        (place,) = twin.changed
        assert twin.steps[place] == twin.steps[place - 1]
        assert twin.response.count(twin.steps[place]) == 2


def test_a_step_of_the_other_trace_stands_in_its_place() -> None:
    for seed in range(20):
        twin = spoil("irrelevant_step", seed)
        assert twin is not None
        (place,) = twin.changed
        assert twin.steps[place] in OTHER.steps
        assert [step for step in twin.steps if step not in OTHER.steps] == [
            step for index, step in enumerate(OWN.steps) if index != place
        ]


def test_a_truncated_response_has_no_answer() -> None:
    for seed in range(20):
        twin = spoil("truncated", seed)
        assert twin is not None
        assert OWN.response.startswith(twin.response)
        assert 0.25 * len(OWN.response) <= len(twin.response) <= 0.75 * len(OWN.response)
        assert twin.answer is None


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("wrong_number", Trace(("No digits here.",), ("", "\nAnswer: 21"), (9, 11))),
        ("wrong_answer", Trace(("12 is it.",), ("", ""), None)),
        ("shuffled_steps", Trace(("one step",), ("", ""), None)),
        ("shuffled_steps", Trace(("same", "same"), ("", " ", ""), None)),
        ("dropped_step", Trace(("one step",), ("", ""), None)),
        ("repeated_step", Trace((), ("nothing",), None)),
        ("irrelevant_step", Trace((), ("nothing",), None)),
        ("truncated", Trace((), ("",), None)),
    ],
)
def test_what_cannot_be_spoiled_has_no_twin(name: str, own: Trace) -> None:
    assert spoil(name, own=own) is None


texts = st.text(alphabet=string.ascii_letters + string.digits + " .\n", min_size=0, max_size=12)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    steps = draw(st.lists(texts.filter(str.strip), max_size=5))
    gaps = [draw(texts) for _ in range(len(steps) + 1)]
    answer = None
    if gaps[-1]:
        start = draw(st.integers(0, len(gaps[-1]) - 1))
        answer = (start, draw(st.integers(start + 1, len(gaps[-1]))))
    return Trace(tuple(steps), tuple(gaps), answer)


@given(own=traces(), other=traces(), seed=st.integers(0, 2**32), name=st.sampled_from(list(BY_NAME)))
def test_any_twin_is_put_together_rightly(own: Trace, other: Trace, seed: int, name: str) -> None:
    twin = BY_NAME[name].apply(own, other, Random(seed))
    if twin is None:
        return
    assert BY_NAME[name].apply(own, other, Random(seed)) == twin
    assert len(twin.gaps) == len(twin.steps) + 1
    for place, step in enumerate(twin.steps):
        assert twin.response[slice(*twin.span(place))] == step
    assert all(0 <= place < len(twin.steps) for place in twin.changed)


def test_kinds_of_other_packages_are_found_and_names_are_unique(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name, dist = "loud", None

        def __init__(self, one: object) -> None:
            self._one = one

        def load(self) -> object:
            return self._one

    def found(one: object) -> None:
        monkeypatch.setattr(plugins_module, "entry_points", lambda group: [Point(one)] if group == GROUP else [])

    found(Corruption("loud", "in capitals", lambda trace, _other, _draw: trace))
    assert list(corruptions()) == [*BY_NAME, "loud"]
    found(Corruption("truncated", "another", lambda trace, _other, _draw: trace))
    with pytest.raises(ImportError, match="two corruptions have the name truncated"):
        corruptions()
    found("no corruption")
    with pytest.raises(plugins_module.PluginError, match="must name a Corruption"):
        corruptions()
