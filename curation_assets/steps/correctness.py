"""Decide whether a response is correct: compare its own answer with its row's, as numbers, choice letters or text.

Used for rows without a verdict (GRAPE's long_cot keeps only verified responses, arXiv 2502.04194). The response's
answer is what its markers yield (`curation_assets.steps.answers`), never the row's answer field.
"""

from __future__ import annotations

import re
from fractions import Fraction

import polars as pl

from curation_assets.steps.answers import find_answer

LONGEST_NUMBER = 200
"""Maximum characters of an answer treated as a number: longer ones are text, and Python refuses to parse them."""

_MARKUP = re.compile(r"\\(?:text|mathrm|mathbf|textbf|left|right|,|;|!|\s)|[$`*\s]|\\(?=[%$])")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?|-?\.\d+")
_QUOTIENT = re.compile(r"(-?\d+)/(\d+)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?:\D|$))")
_CHOICE = re.compile(r"\(?([A-Za-z])(?:[).:]|$)")


def verified(rows: pl.DataFrame) -> pl.Series:
    """Return whether each response's own answer equals its row's answer; null if either is missing."""
    verdicts = [
        None if reference is None else verdict(response, reference)
        for response, reference in rows.select("response", "answer").iter_rows()
    ]
    return pl.Series("verified", verdicts, dtype=pl.Boolean)


def verdict(response: str, reference: str) -> bool | None:
    """Return whether a response's own answer equals a reference answer; None if the response gives none."""
    answer, equal = judged(response, reference)
    return None if answer is None else equal


def stated_answer(text: str) -> str | None:
    """Return the answer stated in a text, found by the markers of segmentation; None without one."""
    found = find_answer(text)
    return None if found is None else text[found.start : found.end]


def judged(text: str, reference: str) -> tuple[str | None, bool]:
    """Return the answer stated in a text, and whether it matches the reference; a text without one is wrong.

    `1,000` is `1000`, `$5.` is `5`, `\\\\boxed{7}` is `7` (`same_answer`).
    """
    answer = stated_answer(text)
    return answer, answer is not None and same_answer(answer, reference)


def solved(text: str, reference: str) -> tuple[str | None, bool]:
    """Return the same as `judged`; if the reference is a worked solution, its stated answer is the reference."""
    return judged(text, stated_answer(reference) or reference)


def same_answer(given: str, reference: str) -> bool:
    """Return whether two answers are equal.

    Numbers are compared exactly; thousands separators, currency and percent signs, units after the number and fractions
    (`3/4`, `\\\\frac{3}{4}`) are supported. A choice is compared by its letter, if the other answer is one (`(B) 12`
    equals `b`). Anything else is compared as text, ignoring white space, markup and case.
    """
    left, right = _plain(given), _plain(reference)
    if left == right:
        return bool(left)
    numbers = _number(left), _number(right)
    if None not in numbers:
        return numbers[0] == numbers[1]
    letters = _letter(left), _letter(right)
    only_letter = len(left.strip("().:")) == 1 or len(right.strip("().:")) == 1
    return None not in letters and only_letter and letters[0] == letters[1]


def _plain(answer: str) -> str:
    """Remove white space, markup and a surrounding box or full stop, and convert to lower case."""
    text = _MARKUP.sub("", answer)
    if text.startswith("\\boxed{") and text.endswith("}"):
        text = text[len("\\boxed{") : -1]
    return text.rstrip(".").lower()


def _number(plain: str) -> Fraction | None:
    """Return the number that an answer begins with, if only a unit follows it."""
    if len(plain) > LONGEST_NUMBER:
        return None
    text = _FRACTION.sub(lambda match: f"{match[1]}{match[2]}/{match[3]}", _THOUSANDS.sub("", plain))
    text = text.lstrip("€£¥")
    quotient = _QUOTIENT.match(text)
    if quotient and int(quotient[2]):
        rest, value = text[quotient.end() :], Fraction(int(quotient[1]), int(quotient[2]))
    else:
        number = _NUMBER.match(text)
        if number is None:
            return None
        rest, value = text[number.end() :], Fraction(number[0])
    # `12 apples` is 12; `2x+1`, `3:4`, `1,2` and `5 or 6` are not numbers.
    return value if re.fullmatch(r"[a-z%°²³]*", rest) and not re.fullmatch(r"[a-z]", rest) else None


def _letter(plain: str) -> str | None:
    """Return the letter of a choice at the beginning of an answer: `B`, `(b)`, `b) 12`, `b. twelve`."""
    found = _CHOICE.match(plain)
    return None if found is None else found[1].lower()
