"""Sections of `curation.yaml` about rows: the corpus, reading, segmentation, filters and validation sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from curation_assets.tables import REPETITION_SHARES
from curation_resources.plugins import plugin_names
from curation_resources.sections import Name, Section

FORMAT_PLUGINS = "curation_assets.formats"
"""Entry points of this group name a `curation_assets.corpus.row_parts.Format`."""

_FORMATS = (
    "auto",
    "messages",
    "sharegpt",
    "alpaca",
    "prompt_response",
    "preference",
    "mmathcot",
    "openthoughts",
    "m23k",
    "ultrainteract",
    "s1k",
    "stepwise",
    *plugin_names(FORMAT_PLUGINS),
)
if TYPE_CHECKING:
    Format = str
else:
    Format = Literal[_FORMATS]

Strategy = Literal["auto", "explicit", "markers", "paragraphs", "lines", "sentences", "words"]
REASONING = "<think>\n{reasoning}\n</think>\n\n{answer}"
"""How reasoning that is stored beside an answer is joined with it."""

TOOL_CALL = "<tool_call>\n{call}\n</tool_call>"
"""How a tool call of the response is written."""

Role = Literal["system", "user", "assistant", "tool"]

FieldPath = Annotated[str, Field(min_length=1, description="field name; use dots for nested fields")]


class Columns(Section):
    """Paths of the fields to read from each row: `solution.text` is field `text` of field `solution`.

    `response` may be a list of paths; each path then yields one candidate response of the row's prompt group. In
    that case `reasoning`, `generator`, `correct`, `reward`, `answer` and `steps` may be lists of the same length (null:
    no value). `reasoning` is put before the response as `corpus.reasoning` says.
    """

    prompt: FieldPath | None = None
    response: FieldPath | list[FieldPath] | None = None
    reasoning: FieldPath | list[FieldPath | None] | None = None
    answer: FieldPath | list[FieldPath | None] | None = None
    steps: FieldPath | list[FieldPath | None] | None = None
    source: FieldPath | None = None
    domain: FieldPath | None = None
    generator: FieldPath | list[FieldPath | None] | None = None
    correct: FieldPath | list[FieldPath | bool | None] | None = None
    reward: FieldPath | list[FieldPath | None] | None = None
    images: FieldPath | None = None

    @model_validator(mode="after")
    def _lists_match(self) -> Columns:
        count = len(self.response) if isinstance(self.response, list) else None
        for name in ("reasoning", "answer", "steps", "generator", "correct", "reward"):
            value = getattr(self, name)
            if isinstance(value, list) and len(value) != count:
                raise ValueError(
                    f"{name} lists {len(value)} paths, but response lists {count or 'no'} paths. "
                    "Give one entry per response (null for no value)."
                )
        return self


class Segmentation(Section):
    """Segmentation of responses into steps.

    It uses characters and words only, so the steps are the same for every target.
    """

    strategy: Strategy = Field("auto", description="auto: use the first strategy that yields at least two steps")
    min_step_words: int = Field(3, ge=1, description="merge shorter segments into a neighbour")
    max_steps: int = Field(64, ge=2, description="merge segments until at most this many remain")
    window_words: int = Field(40, ge=1, description="words per fixed-size window in the last strategy")


def _or_strategy(schema: dict[str, Any]) -> None:
    """Let a strategy's name stand for the section in the JSON Schema as well."""
    section = {"$ref": schema.pop("$ref")}
    schema["anyOf"] = [section, {"type": "string", "enum": list(get_args(Strategy))}]


class Images(Section):
    """Limits on the images that are opened, because a row of unknown origin can point at anything.

    They belong to the corpus because they express how far its rows are trusted, not where or how fast signals are
    measured. Samples with an image over a limit are counted separately and measured once the limits allow it.
    """

    max_pixels: int = Field(50_000_000, ge=1, description="width times height; larger images are not decoded")
    max_bytes: int = Field(50_000_000, ge=1, description="size of an image file; larger files are not opened")
    fetch_remote: bool = Field(False, description="fetch images with a web address each time they are measured")


class Contamination(Section):
    """Overlap with held-out benchmarks, measured by word n-grams."""

    files: list[str] = Field(
        min_length=1, description="benchmark files; glob patterns are allowed: ./benchmarks/*.jsonl"
    )
    ngram: int = Field(8, ge=1, description="words per n-gram")
    share: float = Field(
        0.5, gt=0, le=1, description="exclude a sample that contains at least this share of a benchmark item's n-grams"
    )
    field: str | None = Field(
        None, description="field that holds the benchmark's text; default: question, problem, prompt, ..."
    )


class Repetition(Section):
    """Limits on repetition within a response; docs/methods.md lists their names."""

    paper: bool = Field(
        False, description="use the limits of Gopher (arXiv 2112.11446), which were designed for web text"
    )
    limits: dict[str, float] = Field(default={}, description="limits by name, such as duplicate_line_share: 0.3")

    @model_validator(mode="after")
    def _some(self) -> Repetition:
        if not self.paper and not self.limits:
            raise ValueError("no limit is set. Set limits, or paper: true.")
        unknown = [name for name in self.limits if name not in REPETITION_SHARES]
        if unknown:
            raise ValueError(f"unknown limit {unknown[0]!r}. Known limits: {', '.join(REPETITION_SHARES)}.")
        return self


def _or_files(schema: dict[str, Any]) -> None:
    """Let a list of files stand for the section in the JSON Schema as well."""
    schema["anyOf"] = [*schema["anyOf"], {"type": "array", "items": {"type": "string"}}]


class CorpusFilters(Section):
    """Samples to exclude from the pool, whatever the method. Every filter is off by default."""

    near_duplicates: float | None = Field(
        None, gt=0, le=1, description="estimated Jaccard similarity (MinHash) from which samples count as duplicates"
    )
    contamination: Contamination | None = Field(None, json_schema_extra=_or_files)
    languages: list[Annotated[str, Field(pattern="^[a-z]{2}$")]] | None = Field(
        None, min_length=1, description="ISO 639-1 codes of the languages to keep"
    )
    language_confidence: float = Field(
        0.8, ge=0, le=1, description="minimum confidence of the language detector before a sample is excluded"
    )
    repetition: Repetition | None = None

    @field_validator("contamination", mode="before")
    @classmethod
    def _files_alone(cls, value: object) -> object:
        return {"files": value} if isinstance(value, list) else value

    @property
    def any(self) -> bool:
        """Return whether any filter is configured."""
        checks = (self.near_duplicates, self.contamination, self.languages, self.repetition)
        return any(check is not None for check in checks)


class Corpus(Section):
    """The landing area and the way its rows are read."""

    landing: str = Field(
        description="folder, or prefix of a bucket (s3://, gs://, az://); every .jsonl, .jsonl.gz and .parquet file "
        "below it is a shard"
    )
    format: Format = "auto"
    columns: Columns = Columns()
    reasoning: str = Field(
        REASONING,
        description="joins reasoning that a row stores beside the answer with it, as the target model writes both",
    )
    tool_call: str = Field(
        TOOL_CALL,
        description="writes a tool call of the response, as the target model writes it; {call} is a JSON object with "
        "name and arguments",
    )
    roles: dict[str, Role] = Field(
        default={}, description="roles of turns by the names that the rows use, such as environment: tool"
    )
    segmentation: Segmentation = Field(default=Segmentation(), json_schema_extra=_or_strategy)
    max_row_bytes: int = Field(
        8_000_000, ge=1000, description="longer rows are rejected; embedded images count at their base64 size"
    )
    images: Images = Images()
    filters: CorpusFilters = CorpusFilters()

    @field_validator("reasoning")
    @classmethod
    def _joins_both(cls, value: str) -> str:
        before, reasoning, rest = value.partition("{reasoning}")
        between, answer, after = rest.partition("{answer}")
        if not (reasoning and answer) or any(mark in before + between + after for mark in ("{reasoning}", "{answer}")):
            raise ValueError("name {reasoning} and then {answer} once each, as in '<think>{reasoning}</think>{answer}'")
        return value

    @field_validator("tool_call")
    @classmethod
    def _holds_call(cls, value: str) -> str:
        if value.count("{call}") != 1:
            raise ValueError("name {call} once, as in '<tool_call>{call}</tool_call>'")
        return value

    def call_text(self, call: str) -> str:
        """Return a tool call, a JSON object with name and arguments, as `tool_call` writes it."""
        return self.tool_call.replace("{call}", call)

    @field_validator("segmentation", mode="before")
    @classmethod
    def _strategy_alone(cls, value: object) -> object:
        return {"strategy": value} if isinstance(value, str) else value


class ValidationSet(Section):
    """A held-out set that methods compare the pool with."""

    name: Name
    path: str = Field(description="a .jsonl, .jsonl.gz or .parquet file")
    format: Format = "auto"
    columns: Columns = Columns()
