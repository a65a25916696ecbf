"""Language detection on the prose of each text, after removing formulas, code and addresses.

It uses py3langid (Lui and Baldwin 2012, "langid.py"; a naive Bayes model over byte n-grams that ships with the
library), restricted to languages with an ISO 639-1 code.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import polars as pl

from curation_assets.quality.extras import filters_library
from curation_assets.quality.words import batches

# Patterns of non-prose, in order of removal, with their replacements.
_NOT_PROSE = (
    (r"(?s)```.*?(?:```|\z)", " "),
    (r"(?s)~~~.*?(?:~~~|\z)", " "),
    (r"`[^`\n]*`", " "),
    (
        r"(?s)\\begin\{(?:equation|align|gather|multline|eqnarray|array|tabular|tikzpicture|asy)\*?\}.*?\\end\{[a-z]+\*?\}",
        " ",
    ),
    (r"(?s)\$\$.*?\$\$", " "),
    (r"(?s)\\\[.*?\\\]", " "),
    (r"(?s)\\\(.*?\\\)", " "),
    # As in Pandoc: no space inside the dollars and no digit after them, so that prices are not matched.
    (r"\$(?:[^\s$]|[^\s$][^$\n]*[^\s$\\])\$([^0-9]|\z)", " $1"),
    (r"\\[A-Za-z]+\*?", " "),
    (r"</?[A-Za-z][^<>]{0,200}>", " "),
    (r"(?:https?://|www\.)\S+|\S+@\S+\.\S+", " "),
    (r"[^\p{L}\p{M}'’]+", " "),
    # Names of variables.
    (r"(?:^| )(?:[A-Za-z] )*[A-Za-z](?: |\z)", " "),
)
_BETWEEN_LETTERS = "[ '’]"

# Minimum UTF-8 bytes of letters for a detection: 16 Latin letters, 8 Cyrillic ones, 6 Chinese characters.
LEAST_BYTES = 16
# Longer texts are reduced to this many characters at each end: the model is certain long before.
READ_CHARACTERS = 1000


def prose(texts: pl.Series) -> pl.Series:
    """Return the texts' prose words, separated by single spaces: without LaTeX, code, tags, addresses, digits,
    symbols."""
    texts = texts.cast(pl.String)
    for pattern, replacement in _NOT_PROSE:
        texts = texts.str.replace_all(pattern, replacement)
    texts = texts.str.strip_chars()
    long = texts.str.len_chars() > 2 * READ_CHARACTERS
    ends = texts.str.head(READ_CHARACTERS) + " " + texts.str.tail(READ_CHARACTERS)
    return texts.zip_with(~long, ends)


def languages(texts: pl.Series) -> pl.DataFrame:
    """Return the language of each text, independent of the other texts; safe to call from several threads.

    Args:
        texts: String; nulls are allowed.

    Returns:
        One row per text: language (String, ISO 639-1, e.g. en) and confidence (Float64, 0..1, the model's probability
            to four digits; low if languages are close or the text is short or mixed). Both are null for a null text and
            for one with less than LEAST_BYTES of prose.

    Raises:
        MissingExtraError: the extra `filters` is not installed.
    """
    identifier = _identifier()
    found: list[tuple[str | None, float | None]] = []
    for _, batch in batches(texts):
        words = prose(batch)
        letters = words.str.replace_all(_BETWEEN_LETTERS, "").str.len_bytes().fill_null(0)
        for text, enough in zip(words, letters >= LEAST_BYTES, strict=True):
            if not enough:
                found.append((None, None))
            else:
                language, confidence = identifier.classify(text)
                # Rounded, because the last digits of the model's sums may differ between machines.
                found.append((language, round(confidence, 4)))
    return pl.DataFrame(found, schema={"language": pl.String, "confidence": pl.Float64}, orient="row")


@cache
def _identifier() -> Any:
    """Return the library's model; classification does not modify it."""
    langid = filters_library("py3langid.langid")
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    identifier.set_languages([name for name in identifier.labels if len(name) == 2])
    return identifier
