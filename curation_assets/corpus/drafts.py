"""Drafts: the parsed form of a row before it becomes a table row, or its refusal with a reason.

REASONS lists every reason that can occur in `rejected_rows`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import orjson

REASONS: dict[str, str] = {
    "empty_file": "the file holds no rows",
    "unknown_extension": "the file extension is not .jsonl, .jsonl.gz or .parquet",
    "unreadable": "the file could not be opened or read",
    "not_gzip": "the file has the extension of gzip, but not its content",
    "truncated_gzip": "the compressed stream ends too early; the last row is lost",
    "damaged_gzip": "the compressed stream is corrupt from this row on",
    "ends_process": "reading the file ended the process that read it",
    "reader_failed": "reading the file raised an exception; report it",
    "not_parquet": "the file has the extension of Parquet, but not its content",
    "duplicate_columns": "several columns of the file have the same name",
    "damaged_parquet": "the file is corrupt from this row on",
    "unpacks_too_far": "the packed file unpacks to far more than its size; reading stopped at this row",
    "row_too_long": "the row is longer than corpus.max_row_bytes",
    "not_json": "the line is not JSON",
    "not_object": "the line is JSON, but not an object",
    "nested_too_deep": "the row's values are nested too deeply",
    "nul_byte": "the row contains a NUL character",
    "invalid_utf8": "the row's bytes are not UTF-8",
    "invalid_unicode": "an escape in the row is half of a surrogate pair",
    "unknown_format": "no format matches the row's fields",
    "wrong_type": "a field has a value of the wrong type",
    "unknown_role": "a turn's role is unknown",
    "not_trained": "every assistant turn is marked with loss: false or weight: 0",
    "missing_prompt": "the row has no prompt",
    "missing_response": "the row has no response",
    "empty_response": "the response is blank",
    "steps_not_in_response": "the explicit steps do not occur in the response in their order",
    "image_outside_folder": "an image path leads outside the file's folder",
    "image_missing": "an image file is missing or cannot be read",
    "image_bad_data": "an image inside the row is empty or not base64",
    "purged": "the sample was removed with `curate purge`",
}


class Refused(ValueError):  # noqa: N818 - it is a verdict that is stored, not only raised
    """A row, or one of its candidate responses, that cannot be used.

    `reason` is a key of REASONS; `detail` states the problem and the fix.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Turn(NamedTuple):
    """One turn of the prompt; the role is system, user, assistant or tool.

    `beside` is a JSON object of what chat templates read beside the text (`tool_calls`, `tool_call_id`, `name`), or
    empty.
    """

    role: str
    content: str
    beside: str = ""

    def record(self) -> dict[str, object]:
        """Return the turn as rows and chat templates hold it."""
        found: dict[str, object] = {"role": self.role, "content": self.content}
        return found | orjson.loads(self.beside) if self.beside else found


@dataclass(frozen=True)
class Draft:
    """One sample as parsed from its row: checked, but without ids.

    `source` is None if the row names none; `images` are paths, URLs, or the bytes of an image inside the row.
    """

    turns: tuple[Turn, ...]
    response: str
    answer: str | None = None
    steps: tuple[str, ...] | None = None
    source: str | None = None
    domain: str | None = None
    generator: str | None = None
    correct: bool | None = None
    reward: float | None = None
    images: tuple[str | bytes, ...] = ()
    extra: str = "{}"
