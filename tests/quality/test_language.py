"""Languages of texts with and without formulas, and what is taken for prose."""

from __future__ import annotations

import re
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation_assets.quality import language, words
from curation_assets.quality.language import LEAST_BYTES, READ_CHARACTERS, languages, prose
from tests.quality.helpers import gsm8k, texts

SENTENCES = {
    "en": "First we add the two numbers, and then we divide the sum by three to find the average.",
    "de": "Zuerst addieren wir die beiden Zahlen, dann teilen wir die Summe durch drei.",
    "fr": "On additionne d'abord les deux nombres, puis on divise la somme par trois.",
    "es": "Primero sumamos los dos números y después dividimos la suma entre tres.",
    "it": "Per prima cosa sommiamo i due numeri, poi dividiamo la somma per tre.",
    "ru": "Сначала складываем два числа, затем делим сумму на три.",
    "zh": "首先我们把两个数相加，然后把和除以三。",
    "ja": "まず二つの数を足して、それから合計を三で割ります。",
    "ko": "먼저 두 수를 더한 다음 그 합을 셋으로 나눕니다.",
    "ar": "نجمع العددين أولا ثم نقسم المجموع على ثلاثة.",
    "hi": "पहले हम दोनों संख्याओं को जोड़ते हैं, फिर योग को तीन से भाग देते हैं।",
    "th": "ขั้นแรกเราบวกจำนวนทั้งสอง แล้วหารผลรวมด้วยสาม",
}
MATHS = (
    r" $x^2 + y^2 = z^2$, \(\frac{a}{b}\), \[\sum_{i=1}^n i = \text{the sum of all of these}\] "
    "https://example.com/an/english/looking/path ```python\nfor number in numbers:\n    print(number)\n``` "
    "<<48/2=24>>24 <think>"
)


def naive_prose(text: str) -> str:
    """The prose of a text by Python's own expressions, with letters told apart one by one."""
    for pattern, replacement in language._NOT_PROSE[:-2]:
        text = re.sub(pattern.replace(r"\z", r"\Z"), replacement.replace("$1", r"\1"), text)
    kept = (c if unicodedata.category(c)[0] in "LM" or c in "'’" else " " for c in text)
    found = "".join(kept).split()
    text = " ".join(word for word in found if not (len(word) == 1 and word.isascii() and word.isalpha()))
    if len(text) <= 2 * READ_CHARACTERS:
        return text
    return f"{text[:READ_CHARACTERS]} {text[-READ_CHARACTERS:]}"


@given(st.lists(st.text("ab $`\\[](){}<>/\n~9é字@.'x:"), max_size=5))
def test_prose_is_that_of_pythons_expressions(values: list[str]) -> None:
    assert prose(pl.Series(values, dtype=pl.String)).to_list() == [naive_prose(value) for value in values]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("It costs $5 now and $6 later", "It costs now and later"),
        ("about $5ish,$6 now", "about ish now"),
        ("so $a+b$ is, with $$long\nformula$$, right", "so is with right"),
        (r"then \(if\) and \[or\] but \textbf{bold} words", "then and but bold words"),
        (r"see \begin{align*} sum of \end{align*} this", "see this"),
        ("run `print` or ```py\nprint``` or ~~~\ncode", "run or or"),
        ("```never closed", ""),
        ("<b>bold</b> 1 < 2 and 3 > 2, mail me@example.org", "bold and mail"),
        ("let x be the number 12", "let be the number"),
        ("l'été d’hiver", "l'été d’hiver"),
        (None, None),
    ],
)
def test_what_is_prose(text: str | None, left: str | None) -> None:
    assert prose(pl.Series([text], dtype=pl.String)).to_list() == [left]


def test_long_texts_are_read_at_both_ends() -> None:
    text = "ab " * 2000 + "字" * 5000
    assert prose(pl.Series([text])).to_list() == [naive_prose(text)]


@pytest.mark.parametrize("name", SENTENCES)
@pytest.mark.parametrize("extra", ["", MATHS], ids=["plain", "with formulas and code"])
def test_languages_are_known(name: str, extra: str) -> None:
    found = languages(pl.Series([SENTENCES[name] + extra]))
    assert found["language"].to_list() == [name]
    assert found["confidence"][0] > 0.5


@pytest.mark.parametrize(
    "text", [None, "", "  \n", "42", "$x = 3$", "' ' '' '''' ''''' ''''''", "x + y = z", "ok", "今天", MATHS]
)
def test_where_there_is_no_prose_nothing_is_said(text: str | None) -> None:
    assert languages(pl.Series([text], dtype=pl.String)).row(0) == (None, None)


def test_how_much_prose_is_enough() -> None:
    values = ["ab " * 8, "ab " * 7 + "a'b", "ab " * 6 + "abc", "ab " * 7 + "'''", "складываем", "числа"]
    found = languages(pl.Series(values))["language"]
    assert found.is_null().to_list() == [False, False, True, True, False, True]


def naive_languages(values: list[str | None]) -> list[tuple[str | None, float | None]]:
    """One text at a time, the model's whole ranking, best first."""
    found: list[tuple[str | None, float | None]] = []
    for text in prose(pl.Series(values, dtype=pl.String)):
        if text is None or sum(len(c.encode()) for c in text if c not in " '’") < LEAST_BYTES:
            found.append((None, None))
        else:
            name, probability = language._identifier().rank(text)[0]
            found.append((name, round(probability, 4)))
    return found


@given(texts)
def test_languages_are_iso_codes_with_probabilities(values: list[str | None]) -> None:
    found = languages(pl.Series(values, dtype=pl.String))
    assert dict(found.schema) == {"language": pl.String, "confidence": pl.Float64}
    assert found.rows() == naive_languages(values)
    for name, confidence in found.iter_rows():
        assert (name is None) == (confidence is None)
        assert name is None or (len(name) == 2 and 0 <= confidence <= 1)


def test_batches_order_and_threads_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [*SENTENCES.values(), None, "", "42"] * 3
    whole = languages(pl.Series(values))
    monkeypatch.setattr(words, "BATCH_BYTES", 100)
    assert languages(pl.Series(values[::-1])).equals(whole.reverse())
    language._identifier.cache_clear()
    with ThreadPoolExecutor(3) as pool:
        assert all(found.equals(whole) for found in pool.map(languages, [pl.Series(values)] * 6))


@pytest.mark.data
def test_real_problems_are_english(real_data: Path) -> None:
    values = [row["question"] + "\n" + row["answer"] for row in gsm8k(real_data)[:1000]]
    found = languages(pl.Series(values))
    assert found["language"].to_list() == ["en"] * 1000
    assert (found["confidence"] > 0.9).sum() > 950


def test_the_checks_are_light_to_import() -> None:
    names = ("contamination", "language", "near_duplicates", "repetition")
    code = f"import sys, {', '.join(f'curation_assets.quality.{name}' for name in names)}\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"rensa", "py3langid", "torch", "dagster", "transformers"} & set(loaded)
