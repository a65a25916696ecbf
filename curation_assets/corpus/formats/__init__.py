"""The row formats, and automatic detection of a file's format.

A format has a name, `matches(row)` and `read(row)`; `Parser` turns rows into finished drafts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from curation_assets.config.corpus_settings import FORMAT_PLUGINS, REASONING, Columns
from curation_assets.corpus.assemble import assemble, claims, unclaimed
from curation_assets.corpus.drafts import Draft, Refused
from curation_assets.corpus.fields import Row
from curation_assets.corpus.formats.conversations import MESSAGES, OPENTHOUGHTS, SHAREGPT
from curation_assets.corpus.formats.instructions import ALPACA, M23K, MMATHCOT, PROMPT_RESPONSE, S1K, STEPWISE
from curation_assets.corpus.formats.pairs import PREFERENCE, ULTRAINTERACT
from curation_assets.corpus.row_parts import Format
from curation_resources.plugins import plugins

# In order of detection: a format that requires more fields comes before one that its rows would also match, and
# formats of other packages come before ours.
FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        *plugins(FORMAT_PLUGINS, Format),
        ULTRAINTERACT,
        PREFERENCE,
        OPENTHOUGHTS,
        M23K,
        S1K,
        STEPWISE,
        MMATHCOT,
        MESSAGES,
        SHAREGPT,
        ALPACA,
        PROMPT_RESPONSE,
    )
}

__all__ = ["FORMATS", "Format", "Parser", "detect", "parse"]


def detect(rows: Sequence[Row], columns: Columns | None = None) -> str | None:
    """Return the format that most rows match (ties: the first in FORMATS), or None if no row matches any.

    Mapped prompt or response columns imply prompt_response, whatever other fields the rows have.
    """
    columns = columns or Columns()
    claimed = claims(columns)
    if columns.response is not None or columns.prompt is not None:
        return PROMPT_RESPONSE.name
    votes = Counter(
        next((name for name, form in FORMATS.items() if form.matches(unclaimed(row, claimed))), None) for row in rows
    )
    del votes[None]
    return max(FORMATS, key=lambda name: votes[name]) if votes else None


class Parser:
    """Parses the rows of one file: a format, the mapped columns, and how reasoning is joined (`corpus.reasoning`).

    Raises:
        KeyError: there is no format of that name.
    """

    def __init__(self, name: str, columns: Columns | None = None, reasoning: str = REASONING) -> None:
        self._format = FORMATS[name]
        self._reasoning = reasoning
        self._columns = columns or Columns()
        self._claimed = claims(self._columns)

    def parse(self, row: Row) -> list[Draft | Refused]:
        """Return the row's candidates in order, each as a draft or a refusal.

        Raises:
            Refused: the row as a whole cannot be used.
        """
        reading = self._format.read(unclaimed(row, self._claimed))
        return assemble(reading, row, self._columns, self._claimed, self._reasoning)


def parse(row: Row, name: str, columns: Columns | None = None, reasoning: str = REASONING) -> list[Draft | Refused]:
    """Parse a single row; see `Parser`."""
    return Parser(name, columns, reasoning).parse(row)
