"""The row formats, and automatic detection of a file's format.

A format has a name, `matches(row)` and `read(row)`; `Parser` turns rows into finished drafts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from curation_assets.config.corpus_settings import FORMAT_PLUGINS, Columns, Corpus
from curation_assets.corpus.assemble import assemble, claims, unclaimed
from curation_assets.corpus.drafts import Draft, Refused
from curation_assets.corpus.fields import Row, absent, lookup
from curation_assets.corpus.formats.conversations import MESSAGES, OPENTHOUGHTS, SHAREGPT
from curation_assets.corpus.formats.instructions import ALPACA, M23K, MMATHCOT, PROMPT_RESPONSE, S1K, STEPWISE
from curation_assets.corpus.formats.pairs import PREFERENCE, ULTRAINTERACT
from curation_assets.corpus.row_parts import Format, with_roles
from curation_resources.plugins import plugins
from curation_resources.storage.landing import printable

MOST_FIELDS = 30
"""Names of fields that a message lists."""

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

__all__ = ["FORMATS", "Format", "Mapped", "Parser", "detect"]


def detect(rows: Sequence[Row], columns: Columns | None = None) -> str | None:
    """Return the format that most rows match (ties: the first in FORMATS), or None if no row matches any.

    Mapped prompt or response columns imply prompt_response, whatever other fields the rows have.
    """
    columns = columns or Columns()
    claimed = claims(columns)
    if columns.response is not None or columns.prompt is not None:
        return PROMPT_RESPONSE.name
    shown = (without_null_fields(unclaimed(row, claimed)) for row in rows)
    votes = Counter(next((name for name, form in FORMATS.items() if form.matches(row)), None) for row in shown)
    del votes[None]
    return max(FORMATS, key=lambda name: votes[name]) if votes else None


def without_null_fields(row: Row) -> Row:
    """Return a row without its null fields: merged files give every row the fields of all."""
    return {name: value for name, value in row.items() if value is not None} if None in row.values() else row


@dataclass
class Mapped:
    """Counts of rows with a value at each mapped path.

    Attributes:
        filled: number of rows with a value that is not null, by path.
        rows: number of rows.
        fields: names of the fields of the first row, for a message about a path that matches nothing.
    """

    filled: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    fields: list[str] = field(default_factory=list)

    def count(self, row: Row) -> None:
        """Count one row."""
        self.rows += 1
        self.fields = self.fields or sorted(row)[:MOST_FIELDS]
        for path in self.filled:
            self.filled[path] += not absent(lookup(row, path))

    def __add__(self, other: Mapped) -> Mapped:
        """Return the counts of two files together."""
        paths = self.filled | {path: self.filled.get(path, 0) + count for path, count in other.filled.items()}
        return Mapped(paths, self.rows + other.rows, self.fields or other.fields)

    @property
    def empty(self) -> list[str]:
        """The paths that match nothing."""
        return [path for path, count in self.filled.items() if not count] if self.rows else []

    def shares(self) -> str:
        """Return the share of rows with a value, for each path."""
        return ", ".join(f"{path} {count / self.rows:.0%}" for path, count in self.filled.items()) if self.rows else ""

    def warning(self) -> str | None:
        """Return a message about the paths that match nothing, with the rows' own fields; None if there are none."""
        if not self.empty:
            return None
        fields = printable(", ".join(self.fields))
        return (
            f"corpus.columns names {', '.join(self.empty)}, which no row has a value for. Their fields: {fields}. "
            "Correct the paths in curation.yaml."
        )


class Parser:
    """Parses the rows of one file in one format.

    Args:
        name: the format.
        corpus: the mapped columns and roles, and how reasoning and tool calls become part of the response.

    Attributes:
        mapped: how many of the rows so far have a value at each mapped path.

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
        self.mapped = Mapped(dict.fromkeys(sorted(self._claimed), 0))

    def parse(self, row: Row) -> list[Draft | Refused]:
        """Return the row's candidates in order, each as a draft or a refusal.

        Raises:
            Refused: the row as a whole cannot be used.
        """
        if self._claimed:
            self.mapped.count(row)
        if self._roles:
            row = with_roles(row, self._roles)
        shown, form = unclaimed(row, self._claimed), self._format
        if self._mixed:
            shown = without_null_fields(shown)
            form = self._format_of(shown)
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
        if self._format.matches(row):
            return self._format
        return next((form for form in FORMATS.values() if form.matches(row)), self._format)
