"""The sections of `curation.yaml` about rows: the corpus, how it is read, cut and filtered, and validation sets."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from curation_assets.tables import REPETITION_SHARES
from curation_resources.sections import Name, Section

Format = Literal[
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
]
Strategy = Literal["auto", "explicit", "markers", "paragraphs", "lines", "sentences", "words"]
FieldPath = Annotated[str, Field(min_length=1, description="a field's name, dots for nesting")]


class Columns(Section):
    """The rows' own names for what we read, as paths: `solution.text` is field text of field solution.

    `response` may be a list of paths: each becomes one candidate response of the row's prompt group. Then
    `generator`, `correct`, `reward`, `answer` and `steps` may be lists of the same length (null: none).
    """

    prompt: FieldPath | None = None
    response: FieldPath | list[FieldPath] | None = None
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
        for name in ("answer", "steps", "generator", "correct", "reward"):
            value = getattr(self, name)
            if isinstance(value, list) and len(value) != count:
                raise ValueError(
                    f"{name} lists {len(value)} paths, but response lists {count or 'no'} paths: "
                    "give one entry for each response (null where there is none)"
                )
        return self


class Segmentation(Section):
    """How responses are cut into steps (characters and words only, so it is the same for every target)."""

    strategy: Strategy = Field("auto", description="auto: the first strategy that yields two steps or more")
    min_step_words: int = Field(3, ge=1, description="shorter segments join their neighbour")
    max_steps: int = Field(64, ge=2, description="more segments than this are merged")
    window_words: int = Field(40, ge=1, description="length of the fixed windows of the last strategy")


def _or_strategy(schema: dict[str, Any]) -> None:
    """In the JSON Schema too, a strategy may stand for the section."""
    section = {"$ref": schema.pop("$ref")}
    schema["anyOf"] = [section, {"type": "string", "enum": list(get_args(Strategy))}]


class Images(Section):
    """Which of the rows' images are opened: limits against what a row of unknown origin may make us do.

    They belong to the corpus, since they say how far its rows are trusted, not where or how fast we measure.
    Samples with an image beyond them are counted apart, and measured once the limits allow it.
    """

    max_pixels: int = Field(50_000_000, ge=1, description="width times height; larger images are not decoded")
    max_bytes: int = Field(50_000_000, ge=1, description="of an image file; larger ones are not opened")
    fetch_remote: bool = Field(False, description="fetch images that have a web address, whenever they are measured")


class Contamination(Section):
    """Overlap with held-out benchmarks by word n-grams."""

    files: list[str] = Field(min_length=1, description="benchmark files; patterns are allowed: ./benchmarks/*.jsonl")
    ngram: int = Field(8, ge=1, description="words of an n-gram")
    share: float = Field(0.5, gt=0, le=1, description="a sample that holds this share of an item's n-grams is left out")
    field: str | None = Field(
        None, description="the rows' field with the text; default: question, problem, prompt, ..."
    )


class Repetition(Section):
    """Limits on repetition in a response; see docs/methods.md for their names."""

    paper: bool = Field(False, description="the limits of Gopher (arXiv 2112.11446), made for web text")
    limits: dict[str, float] = Field(default={}, description="limits by name, as duplicate_line_share: 0.3")

    @model_validator(mode="after")
    def _some(self) -> Repetition:
        if not self.paper and not self.limits:
            raise ValueError("give limits, or paper: true")
        unknown = [name for name in self.limits if name not in REPETITION_SHARES]
        if unknown:
            raise ValueError(f"there is no limit {unknown[0]!r}; there are {', '.join(REPETITION_SHARES)}")
        return self


def _or_files(schema: dict[str, Any]) -> None:
    """In the JSON Schema too, a list of files may stand for the section."""
    schema["anyOf"] = [*schema["anyOf"], {"type": "array", "items": {"type": "string"}}]


class CorpusFilters(Section):
    """Which samples are left out of the pool, whatever the method; nothing is looked at unless it is asked for."""

    near_duplicates: float | None = Field(
        None, gt=0, le=1, description="estimated Jaccard similarity (MinHash) from which on samples are one"
    )
    contamination: Contamination | None = Field(None, json_schema_extra=_or_files)
    languages: list[Annotated[str, Field(pattern="^[a-z]{2}$")]] | None = Field(
        None, min_length=1, description="ISO 639-1 codes of languages that stay"
    )
    language_confidence: float = Field(0.8, ge=0, le=1, description="how sure another language must be")
    repetition: Repetition | None = None

    @field_validator("contamination", mode="before")
    @classmethod
    def _files_alone(cls, value: object) -> object:
        return {"files": value} if isinstance(value, list) else value

    @property
    def any(self) -> bool:
        """Whether any filter is configured."""
        checks = (self.near_duplicates, self.contamination, self.languages, self.repetition)
        return any(check is not None for check in checks)


class Corpus(Section):
    """Where traces arrive and how their rows are read."""

    landing: str = Field(
        description="folder or s3://bucket/prefix; every .jsonl, .jsonl.gz and .parquet file below it is a shard"
    )
    format: Format = "auto"
    columns: Columns = Columns()
    segmentation: Segmentation = Field(default=Segmentation(), json_schema_extra=_or_strategy)
    max_row_bytes: int = Field(
        8_000_000, ge=1000, description="longer rows are rejected; images inside a row count as base64"
    )
    images: Images = Images()
    filters: CorpusFilters = CorpusFilters()

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
