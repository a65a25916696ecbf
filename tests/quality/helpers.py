"""The slow, obvious way to split words, and texts to try the checks with."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

from hypothesis import strategies as st

UNSPACED = ("CJK UNIFIED", "HIRAGANA LETTER", "KATAKANA LETTER", "THAI CHARACTER", "LAO ", "KHMER ", "MYANMAR ")

# Letters of several scripts, marks, digits, joiners, full-width forms, ligatures, and what stands between words.
CHARACTERS = (
    "abcABCxyzßİΣςée\u0301\u00c5\u212bЖж०कि가각汉字日本あアｱ\u0e01\u0e34ﬁ²½Ⅳ２Ａ_09"
    " \t\n\n\u00a0\u3000.,;-—'’$\\😀\u200d\u00ad\u0000"
)

nasty = st.text(CHARACTERS, max_size=60)
anything = st.text(max_size=40)
# Few words, so that runs of them come again.
wordy = st.lists(st.sampled_from(["a", "bb", "Ccc", "bb,", "\n", "\n\n", "字", ". "]), max_size=60).map(" ".join)
texts = st.lists(st.none() | nasty | anything | wordy, max_size=12)


def naive_words(text: str) -> list[str]:
    """Words of a text, character by character."""
    words: list[str] = []
    inside = False
    for character in unicodedata.normalize("NFKC", text).lower():
        alone = unicodedata.name(character, "").startswith(UNSPACED)
        wordlike = unicodedata.category(character) in {"Nd", "Nl", "Pc"} or unicodedata.category(character)[0] in "LM"
        if alone or (not inside and (wordlike or character == "\u200d")):
            words.append(character)
        elif inside and (wordlike or character == "\u200d"):
            words[-1] += character
        inside = not alone and (wordlike or character == "\u200d")
    return words


def gsm8k(folder: Path, name: str = "train") -> list[dict[str, str]]:
    """Rows of GSM8K: question and answer."""
    lines = (folder / "gsm8k" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
