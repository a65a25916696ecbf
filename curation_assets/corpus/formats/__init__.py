"""The row formats, and automatic detection of a file's format.

A format has a name, `matches(row)` and `read(row)`; `Parser` turns rows into finished drafts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from curation_assets.config.corpus_settings import FORMAT_PLUGINS, Columns, Corpus
from curation_assets.corpus.assemble import assemble, claims, unclaimed
from curation_assets.corpus.drafts import Draft, Refused
from curation_assets.corpus.fields import Row
from curation_assets.corpus.formats.conversations import MESSAGES, OPENTHOUGHTS, SHAREGPT
from curation_assets.corpus.formats.instructions import ALPACA, M23K, MMATHCOT, PROMPT_RESPONSE, S1K, STEPWISE
from curation_assets.corpus.formats.pairs import PREFERENCE, ULTRAINTERACT
from curation_assets.corpus.row_parts import Format, with_roles
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

__all__ = ["FORMATS", "Format", "Parser", "detect"]


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
    """Parses the rows of one file in one format.

    Args:
        name: the format.
        corpus: the mapped columns and roles, and how reasoning and tool calls become part of the response.

    Raises:
        KeyError: there is no format of that name.
    """

    def __init__(self, name: str, corpus: Corpus) -> None:
        self._format = FORMATS[name]
        self._corpus = corpus
        # Whoever names a format or the columns means all rows.
        self._mixed = corpus.format == "auto" and corpus.columns.prompt is None and corpus.columns.response is None
        self._claimed = claims(corpus.columns)
        self._roles = {name.lower(): role for name, role in corpus.roles.items()}

    def parse(self, row: Row) -> list[Draft | Refused]:
        """Return the row's candidates in order, each as a draft or a refusal.

        Raises:
            Refused: the row as a whole cannot be used.
        """
        if self._roles:
            row = with_roles(row, self._roles)
        shown = unclaimed(row, self._claimed)
        form = self._format_of(shown) if self._mixed else self._format
        try:
            found = assemble(form.read(shown), row, self._corpus, self._claimed)
        except Refused as refusal:
            raise self._read_as(form, refusal) from refusal
        return [self._read_as(form, one) if isinstance(one, Refused) else one for one in found]

    def _read_as(self, form: Format, refusal: Refused) -> Refused:
        """Name the shape that a row was taken to have, where it was not given."""
        detail = f"{refusal.detail} (Read as {form.name}.)" if self._mixed else refusal.detail
        return Refused(refusal.reason, detail)

    def _format_of(self, row: Row) -> Format:
        """Return the file's format if the row has its shape, else the first format that it has the shape of."""
        # Files that several data sets were merged into give every row all fields, with null for missing values.
        held = {name: value for name, value in row.items() if value is not None} if None in row.values() else row
        if self._format.matches(held):
            return self._format
        return next((form for form in FORMATS.values() if form.matches(held)), self._format)
