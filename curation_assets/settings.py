"""The schema of what a user configures: `curation.yaml`.

Only shape, defaults and combinations live here; reading the file and pointing at a faulty line is
`curation_assets.config_file`. Formulas and sources of the defaults: docs/methods.md.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from curation_assets.tables import SAMPLE_SCORES
from resources.scoring.samples import Proxy

Name = Annotated[
    str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=100, description="lower-case letters, digits and _")
]
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
SignalName = Literal[
    "step_gradients",
    "likelihoods",
    "segment_likelihoods",
    "embeddings_mean",
    "embeddings_last",
    "embeddings_position_weighted",
]
FieldPath = Annotated[str, Field(min_length=1, description="a field's name, dots for nesting")]

# Asset keys and groups that are not a target's.
RESERVED_TARGET_NAMES = {"corpus", "subsets", "releases"}

# A named score becomes a column of `sample_scores`, and the column `score` of a pool.
RESERVED_SCORE_NAMES = {*SAMPLE_SCORES.columns, "score"}


class LocatedError(ValueError):
    """A mistake that lies at a known place below the section that found it."""

    def __init__(self, location: list[int | str], message: str) -> None:
        super().__init__(message)
        self.location = location


class _Section(BaseModel):
    """A section of the file: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Columns(_Section):
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


class Segmentation(_Section):
    """How responses are cut into steps (characters and words only, so it is the same for every target)."""

    strategy: Strategy = Field("auto", description="auto: the first strategy that yields two steps or more")
    min_step_words: int = Field(3, ge=1, description="shorter segments join their neighbour")
    max_steps: int = Field(64, ge=2, description="more segments than this are merged")
    window_words: int = Field(40, ge=1, description="length of the fixed windows of the last strategy")


def _or_strategy(schema: dict[str, Any]) -> None:
    """In the JSON Schema too, a strategy may stand for the section."""
    section = {"$ref": schema.pop("$ref")}
    schema["anyOf"] = [section, {"type": "string", "enum": list(get_args(Strategy))}]


class Images(_Section):
    """Which of the rows' images are opened: limits against what a row of unknown origin may make us do.

    They belong to the corpus, since they say how far its rows are trusted, not where or how fast we measure.
    Samples with an image beyond them are counted apart, and measured once the limits allow it.
    """

    max_pixels: int = Field(50_000_000, ge=1, description="width times height; larger images are not decoded")
    max_bytes: int = Field(50_000_000, ge=1, description="of an image file; larger ones are not opened")
    fetch_remote: bool = Field(False, description="fetch images that have a web address, whenever they are measured")


class Corpus(_Section):
    """Where traces arrive and how their rows are read."""

    landing: str = Field(description="folder; every .jsonl, .jsonl.gz and .parquet file below it is a shard")
    format: Format = "auto"
    columns: Columns = Columns()
    segmentation: Segmentation = Field(default=Segmentation(), json_schema_extra=_or_strategy)
    max_row_bytes: int = Field(
        8_000_000, ge=1000, description="longer rows are rejected; images inside a row count as base64"
    )
    images: Images = Images()

    @field_validator("segmentation", mode="before")
    @classmethod
    def _strategy_alone(cls, value: object) -> object:
        return {"strategy": value} if isinstance(value, str) else value


class Warmup(_Section):
    """GRACE's warm-up: the base model, LoRA-tuned once on a random share of the pool, then frozen."""

    fraction: float = Field(0.05, gt=0, le=1, description="gamma, share of the pool's samples without images")
    min_pool: int = Field(100, ge=1, description="samples without images that the pool must hold before it is trained")
    lora_rank: int = Field(8, ge=1)
    lora_alpha: int = Field(32, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    epochs: int = Field(1, ge=1)
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    batch_size: int = Field(16, ge=1)
    seed: int = Field(0, ge=0, lt=2**32)


def _or_null(schema: dict[str, Any]) -> None:
    """In the JSON Schema too, null stands for the word none."""
    schema["anyOf"] = [*schema["anyOf"], {"type": "null"}]


class Target(_Section):
    """A model that samples are measured with; its name is the prefix of its assets."""

    name: Name
    model: str = Field(description="folder with config.json, safetensors and a tokenizer, or a hub id")
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    signals: list[SignalName] = Field(
        default=["step_gradients"], min_length=1, description="what one pass measures; what is not listed costs nothing"
    )
    proxy: Proxy = Field("bias", description="which gradient stands for a segment's in step_gradients")
    warmup: Warmup | Literal["none"] = Field(
        default=Warmup(),
        description="none: measure at the base model (unfaithful to GRACE, reported so)",
        json_schema_extra=_or_null,
    )
    template: Literal["auto", "chat", "plain"] = Field(
        "auto",
        description="auto: the tokenizer's chat template if it has one; plain: turns joined by newlines",
    )
    max_length: int | None = Field(None, ge=16, description="tokens; default: the model's context")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    trust_remote_code: bool = Field(False, description="run Python code that the model folder ships")

    @field_validator("warmup", mode="before")
    @classmethod
    def _none_is_a_word(cls, value: object) -> object:
        return "none" if value is None else value

    @model_validator(mode="after")
    def _signals_differ(self) -> Target:
        for position, signal in enumerate(self.signals):
            if signal in self.signals[:position]:
                raise LocatedError(["signals", position], f"{signal!r} is listed twice; list each signal once")
        return self

    @property
    def scorable(self) -> bool:
        """Whether there are scores: they are arithmetic over step gradients."""
        return "step_gradients" in self.signals


class History(_Section):
    """How earlier steps are weighted: exactly one of the two."""

    window: int | None = Field(None, ge=1, description="equal weights on the last W steps")
    ema: float | None = Field(None, gt=0, lt=1, description="weights beta^(k-1-j), normalised")

    @model_validator(mode="after")
    def _one_of(self) -> History:
        if (self.window is None) == (self.ema is None):
            raise ValueError("give exactly one of window and ema, or history: uniform")
        return self


class Score(_Section):
    """A named score: a method with its parameters, computed from a target's signals."""

    name: Name
    target: str
    method: Literal["grace"]
    alpha: float = Field(0.7, ge=0, le=1, description="weight of answer alignment against consistency")
    history: History | Literal["uniform"] = "uniform"
    preset: Literal["paper"] | None = Field(None, description="paper: min_steps 8")
    min_steps: int = Field(2, ge=1, description="traces with fewer steps are not eligible for selection")

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("preset") == "paper":
            return {"min_steps": 8} | data
        return data


class Budget(_Section):
    """How much to select: exactly one of the three."""

    fraction: float | None = Field(None, gt=0, le=1, description="share of the eligible pool, rounded up")
    samples: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1, description="response tokens of the score's target")

    @model_validator(mode="after")
    def _one_of(self) -> Budget:
        if sum(value is not None for value in (self.fraction, self.samples, self.tokens)) != 1:
            raise ValueError("give exactly one of fraction, samples and tokens")
        return self


class Subset(_Section):
    """A named subset: the best of the pool by one score, within a budget."""

    name: Name
    score: str
    budget: Budget


class Releases(_Section):
    """When releases are made."""

    policy: Literal["manual", "on_change"] = Field(
        "manual", description="manual: by `curate release`; on_change: whenever `curate run` changed a subset"
    )


DEVICES = r"^(auto|cpu|cuda|cuda:\d+(,cuda:\d+)*)$"


class Engine(_Section):
    """Where shards are measured."""

    kind: Literal["local"] = "local"
    device: str = Field(
        "auto",
        description="auto: every CUDA device that is visible, else the CPU; several: cuda:0,cuda:1",
        json_schema_extra={"pattern": DEVICES},
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto", description="attention implementation; auto: the fastest that the model and the device have"
    )
    compile: bool = Field(False, description="compile the model first: minutes once, then faster batches")
    batch_tokens: int = Field(8192, ge=1, description="tokens a batch, padding included")
    head_memory_mib: int | None = Field(
        None, ge=1, description="memory that the streamed LM head may use for logits; default: 256, on CUDA 768"
    )
    part_seconds: float = Field(5.0, ge=0, description="finished rows are committed this often", examples=[5.0])
    shards_per_run: int = Field(200, ge=1, description="longest range of shards that one run takes")

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, device: str) -> str:
        if re.fullmatch(DEVICES, device) is None:
            raise ValueError(
                f"must be auto, cpu, cuda, or CUDA devices by number, as in cuda:1 or cuda:0,cuda:1 (found {device!r})"
            )
        return device


class Settings(_Section):
    """The whole of curation.yaml."""

    version: Literal[1] = 1
    corpus: Corpus
    warehouse: str = Field("./warehouse", description="folder in which every table is kept")
    targets: list[Target] = Field(min_length=1)
    scores: list[Score] = Field(default=[])
    subsets: list[Subset] = Field(default=[])
    engine: Engine = Engine()
    releases: Releases = Releases()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Settings:
        for section in ("targets", "scores", "subsets"):
            seen: set[str] = set()
            for position, item in enumerate(getattr(self, section)):
                if item.name in seen:
                    raise LocatedError(
                        [section, position, "name"],
                        f"the name {item.name!r} is used twice; names must differ",
                    )
                seen.add(item.name)
        for position, target in enumerate(self.targets):
            if target.name in RESERVED_TARGET_NAMES:
                raise LocatedError(
                    ["targets", position, "name"], f"{target.name!r} is a group of assets; choose another name"
                )
        for position, score in enumerate(self.scores):
            if score.name in RESERVED_SCORE_NAMES:
                raise LocatedError(
                    ["scores", position, "name"],
                    f"{score.name!r} is a column of sample_scores; choose another name",
                )
        return self

    @model_validator(mode="after")
    def _references_exist(self) -> Settings:
        targets = {target.name: target for target in self.targets}
        scores = sorted(score.name for score in self.scores)
        for position, score in enumerate(self.scores):
            if score.target not in targets:
                raise LocatedError(
                    ["scores", position, "target"],
                    f"there is no target {score.target!r}; targets are {', '.join(targets)}",
                )
            if not targets[score.target].scorable:
                raise LocatedError(
                    ["scores", position, "target"],
                    f"method {score.method} is computed from step_gradients, which target {score.target!r} does not "
                    "measure; add step_gradients to its signals, or name another target",
                )
        for position, subset in enumerate(self.subsets):
            if subset.score not in scores:
                raise LocatedError(
                    ["subsets", position, "score"],
                    f"there is no score {subset.score!r}; scores are {', '.join(scores) or '(none)'}",
                )
        return self

    def target(self, name: str) -> Target:
        """The target of that name (KeyError if there is none)."""
        return {target.name: target for target in self.targets}[name]

    def score(self, name: str) -> Score:
        """The score of that name (KeyError if there is none)."""
        return {score.name: score for score in self.scores}[name]

    def subset(self, name: str) -> Subset:
        """The subset of that name (KeyError if there is none)."""
        return {subset.name: subset for subset in self.subsets}[name]

    def scores_of(self, target: str) -> list[Score]:
        """The scores that are computed from a target's signals."""
        return [score for score in self.scores if score.target == target]
