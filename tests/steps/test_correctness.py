"""Whether answers are taken for the same when, and only when, they are."""

from __future__ import annotations

import polars as pl
import pytest

from curation_assets.steps.correctness import same_answer, verified


@pytest.mark.parametrize(
    ("given", "reference"),
    [
        ("24", "24"),
        ("24.", "24"),
        ("$24.00$", "24"),
        ("1,234", "1234"),
        ("-0.5", "-1/2"),
        ("\\frac{3}{4}", "0.75"),
        ("-\\dfrac{3}{4}", "-3/4"),
        ("\\boxed{12}", "12"),
        ("12 apples", "12"),
        ("\\$1,200", "1200"),
        ("45%", "45"),
        ("30^\\circ", "30^\\circ"),
        ("(B)", "b"),
        ("B) 12", "B"),
        ("b. twelve", "B"),
        ("**Paris**", "paris"),
        ("x + 1", "x+1"),
        (".5", "0.5"),
    ],
)
def test_equal_answers(given: str, reference: str) -> None:
    assert same_answer(given, reference)
    assert same_answer(reference, given)


@pytest.mark.parametrize(
    ("given", "reference"),
    [
        ("24", "25"),
        ("2x", "2"),
        ("2x+1", "2"),
        ("3:4", "3"),
        ("5 or 6", "5"),
        ("1,2", "12"),
        ("12", "1.2"),
        ("A", "B"),
        ("(A) 3", "(B) 3"),
        ("a apple", "b"),
        ("", ""),
        ("Paris", "Rome"),
        ("1/0", "1"),
        ("Apple", "A"),
    ],
)
def test_other_answers(given: str, reference: str) -> None:
    assert not same_answer(given, reference)
    assert not same_answer(reference, given)


def test_endless_digits_are_text() -> None:
    assert same_answer("0." + "3" * 5000, "0." + "3" * 5000)
    assert not same_answer("0." + "3" * 5000, "1/3")


def test_a_response_is_held_against_its_rows_answer() -> None:
    rows = pl.DataFrame(
        {
            "response": ["2 + 2 = 4\n#### 4", "2 + 2 = 5\n#### 5", "who knows", "so\nAnswer: 4"],
            "answer": ["4", "4", "4", None],
        }
    )
    assert verified(rows).to_list() == [True, False, None, None]
