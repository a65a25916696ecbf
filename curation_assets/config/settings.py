"""The schema of `curation.yaml`.

This module only defines shape, defaults and valid combinations; `curation_assets.config.config_file` reads the file
and points at the faulty line. Formulas and sources of the defaults: docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from curation_assets.config.checkpoint_settings import Perturbation, Warmup
from curation_assets.config.corpus_settings import Corpus, ValidationSet
from curation_assets.config.evaluation_settings import Audit, Evaluation, refuse_unknown_names
from curation_assets.config.running_settings import S3, Alerts, Engine, Freshness, Limits
from curation_assets.methods.combined import Combination, Combined
from curation_assets.methods.method import Method, ScoreSection, TargetFacts, TrainingRun
from curation_assets.methods.registry import METHODS, method_of
from curation_assets.methods.selectors.candidates import Selector, SelectorSection, VectorSelector
from curation_assets.methods.selectors.registry import SELECTORS, selector_of
from curation_assets.tables import SAMPLE_SCORES
from curation_assets.tables.signals import ALONG_A_RUN, OF_KIND, Kind, SignalName
from curation_resources.models.judge import COMPLEXITY_PROMPT, DIFFICULTY_PROMPT, QUALITY_PROMPT, QUESTIONS, TAGS_PROMPT
from curation_resources.models.solving import SolvingSpec
from curation_resources.scoring.gradient_spec import FeatureError, FeatureSpec, GradientWeights
from curation_resources.scoring.retrieval_task import LEAST_PAIRS, RetrievalSpec
from curation_resources.scoring.samples import Proxy
from curation_resources.scoring.spec import ProcessSpec, Template
from curation_resources.sections import LocatedError, Name, Section, unknown

# Other asset groups and keys use these names.
RESERVED_TARGET_NAMES = {"corpus", "validation", "subsets", "releases", "reports"}

# A score's name becomes a column of `sample_scores`, and the column `score` of a pool.
RESERVED_SCORE_NAMES = {*SAMPLE_SCORES.columns, "score"}


def _or_null(schema: dict[str, Any]) -> None:
    """Accept null for the word none in the JSON Schema as well."""
    schema["anyOf"] = [*schema["anyOf"], {"type": "null"}]


class Gradients(Section):
    """Per-sample gradients (gradient_norms, gradient_features and those along a training run) and their projection
    into one vector."""

    weights: GradientWeights = Field(
        "auto",
        description="adapter: the LoRA matrices of the target's own run; layers: every linear layer of the decoder; "
        "auto: the adapter if there is one, else the layers",
    )
    projection: int = Field(64, ge=1, description="p: keep p x p numbers of each matrix' gradient")
    dimension: int = Field(
        8192, ge=1, description="k: length of the vector into which these are summed, stored as int8"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the random signs")
    parity: Literal["paper", "as_coded"] = Field(
        "paper",
        description="as_coded: put Adam's 1e-8 inside the root and weigh checkpoints by the logged learning rates, as "
        "in LESS's released code, and compare spectra of gradients of different shapes with equally many elements, as "
        "in the code of that paper",
    )

    @model_validator(mode="after")
    def _it_fits(self) -> Gradients:
        try:
            self.spec()
        except FeatureError as error:
            raise ValueError(str(error)) from error
        return self

    def spec(self) -> FeatureSpec:
        """Return the settings in the form that the scoring code expects."""
        return FeatureSpec(self.weights, self.projection, self.dimension, self.seed, self.parity == "as_coded")


class Endpoint(Section):
    """An OpenAI-compatible endpoint that serves a target's `model`, as a judge or to solve prompts; `limits.tokens`
    bounds its use."""

    url: str = Field(
        pattern=r"^https?://[^\s@]+$",
        description="base URL, such as https://api.example.com/v1 or http://localhost:8000/v1",
    )
    key_variable: str | None = Field(
        None,
        pattern=r"^[A-Z_][A-Z0-9_]*$",
        description="environment variable that holds the API key; never put the key itself here, because every "
        "release contains this file",
    )
    tags_prompt: str = Field(
        TAGS_PROMPT, description="prompt for instruction_tags; {prompt} is replaced by the sample's prompt"
    )
    difficulty_prompt: str = Field(
        DIFFICULTY_PROMPT, description="prompt for difficulty; {prompt} is replaced by the sample's prompt"
    )
    complexity_prompt: str = Field(
        COMPLEXITY_PROMPT, description="prompt for complexity; {prompt} is replaced by the sample's prompt"
    )
    quality_prompt: str = Field(
        QUALITY_PROMPT,
        description="prompt for quality; {prompt} is replaced by the sample's prompt, {response} by its response",
    )
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(512, ge=1, description="maximum tokens per reply")
    workers: int = Field(8, ge=1, le=256, description="concurrent requests")
    timeout_seconds: float = Field(120.0, gt=0, description="timeout of a request")
    attempts: int = Field(5, ge=1, description="attempts per request if the failure may be transient")
    ask_again: int = Field(
        0, ge=0, description="increase to repeat only the requests that were refused or could not be parsed"
    )

    @field_validator(*(kind.template for kind in QUESTIONS.values()))
    @classmethod
    def _the_sample_is_shown(cls, text: str, field: ValidationInfo) -> str:
        (kind,) = (kind for kind in QUESTIONS.values() if kind.template == field.field_name)
        for placeholder in kind.placeholders:
            if placeholder not in text:
                part = placeholder.strip("{}")
                raise ValueError(
                    f"the question does not contain the sample's {part}. Put {placeholder} where the {part} goes."
                )
        return text


class Solving(Section):
    """Sampling of a model's own answers to prompts (solve_rate); all of it is part of the signal's key."""

    answers: int = Field(4, ge=1, description="answers per prompt")
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(0.95, gt=0, le=1)
    max_tokens: int = Field(4096, ge=1, description="maximum tokens per answer; one that is cut off is mostly wrong")
    seed: int = Field(
        0,
        ge=0,
        lt=2**31,
        description="seed of the first request for a prompt; later ones add the number of answers that are there",
    )

    @model_validator(mode="after")
    def _answers_differ(self) -> Solving:
        if self.temperature == 0 and self.answers > 1:
            raise ValueError(
                "with temperature: 0, all answers to a prompt are equal. Raise it, or ask once (answers: 1)."
            )
        return self

    def spec(self) -> SolvingSpec:
        """Return the settings in the form that the client of the endpoint expects."""
        return SolvingSpec(**self.model_dump())


class ProcessReward(Section):
    """Texts by which a process reward model reads the steps of a response (process_rewards)."""

    separator: str = Field(
        "<extra_0>", min_length=1, description="the token after each step, at which its reward is read"
    )
    step_format: str = Field(
        "{step}{separator}", description='a step with its separator; "{step} {separator}\\n" for Math-Shepherd'
    )
    label: int = Field(1, ge=0, description="the label of right steps, for a token classifier")
    good: str | None = Field(None, min_length=1, description="the token of a right step, for a language model")
    bad: str | None = Field(None, min_length=1, description="the token of a wrong step, for a language model")

    @field_validator("step_format")
    @classmethod
    def _both_are_there(cls, text: str) -> str:
        for placeholder in ("{step}", "{separator}"):
            if text.count(placeholder) != 1:
                raise ValueError(f"{placeholder} must occur exactly once, as in {{step}}{{separator}}")
        return text

    @model_validator(mode="after")
    def _labels_differ(self) -> ProcessReward:
        if (self.good is None) != (self.bad is None) or (self.good is not None and self.good == self.bad):
            raise ValueError('a language model needs two different label tokens, such as good: "+" and bad: "-"')
        return self

    def spec(self) -> ProcessSpec:
        """Return the settings in the form that the pass expects."""
        return ProcessSpec(**self.model_dump())


class AttentionInfluence(Section):
    """The retrieval heads of a model and the task that finds them (attention_influence)."""

    heads: float = Field(0.05, gt=0, le=1, description="share of the attention heads to mask, at least one head")
    prompts: int = Field(32, ge=1, description="prompts of the retrieval task")
    pairs: int = Field(
        48, ge=LEAST_PAIRS, description="key-value pairs of a prompt; fewer if the prompt would be too long"
    )
    length: int = Field(4096, ge=16, description="maximum length of a prompt in tokens; at most the target's own")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of keys, values and queries")

    def spec(self) -> RetrievalSpec:
        """Return the settings in the form that the pass expects."""
        return RetrievalSpec(**self.model_dump())


KIND_TEXT = {
    "embedding": "an embedding model",
    "reward": "a reward model",
    "process_reward": "a process reward model",
    "judge": "a judge",
}


class Target(Section):
    """A model that measures samples; its name is the prefix of its assets."""

    name: Name
    model: str = Field(description="folder with config.json, safetensors and a tokenizer, or a hub id")
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    signals: list[SignalName] = Field(
        default=["step_gradients"],
        min_length=1,
        description="signals to measure, in one pass; only the listed signals cost anything",
    )
    proxy: Proxy = Field(
        "bias", description="gradient that represents a segment in step_gradients and their trajectories"
    )
    warmup: Warmup | Literal["none"] = Field(
        default=Warmup(),
        description="none: measure at the base model (not faithful to GRACE, and reported as such)",
        json_schema_extra=_or_null,
    )
    perturbation: Perturbation = Field(
        default=Perturbation(), description="checkpoints at which perturbed_losses are measured"
    )
    endpoint: Endpoint | None = Field(
        None, description="query `model` at this endpoint, as a judge: " + ", ".join(OF_KIND["judge"])
    )
    solving: Solving = Field(default=Solving(), description="sampling of answers for solve_rate")
    process_reward: ProcessReward = Field(
        default=ProcessReward(), description="separator and labels of a process reward model"
    )
    attention_influence: AttentionInfluence = Field(
        default=AttentionInfluence(), description="retrieval heads that attention_influence masks"
    )
    gradients: Gradients = Field(
        default=Gradients(), description="parameters and projection of gradient norms and features"
    )
    template: Template = Field(
        "auto",
        description="auto: the tokenizer's chat template if it has one; plain: turns joined by newlines; "
        "question_answer: GRAPE's `Question: {prompt} \\n Answer: {response}`; "
        "alpaca: Stanford Alpaca's, as in Cherry LLM",
    )
    max_length: int | None = Field(None, ge=16, description="maximum length in tokens; default: the model's context")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    trust_remote_code: bool = Field(False, description="run the Python code in the model's folder")

    @field_validator("warmup", mode="before")
    @classmethod
    def _none_is_a_word(cls, value: object) -> object:
        return "none" if value is None else value

    @model_validator(mode="after")
    def _signals_differ(self) -> Target:
        for position, signal in enumerate(self.signals):
            if signal in self.signals[:position]:
                raise LocatedError(["signals", position], f"{signal!r} is listed twice. List each signal once.")
        kind_error = self._kind_error()
        if kind_error is not None:
            raise LocatedError(["signals"], kind_error)
        along_a_run = [signal for signal in self.signals if signal in ALONG_A_RUN]
        if along_a_run and (self.warmup == "none" or self.warmup.save_every is None):
            raise LocatedError(
                ["signals", self.signals.index(along_a_run[0])],
                f"{along_a_run[0]} are measured at the checkpoints of the target's own training run. Add save_every "
                "to its warmup, as in warmup: {save_every: epoch}.",
            )
        if "base_likelihoods" in self.signals and self.warmup == "none":
            raise LocatedError(
                ["signals", self.signals.index("base_likelihoods")],
                "base_likelihoods compare a trained checkpoint with the model it was trained from; with warmup: "
                "none the two are the same. Use likelihoods.",
            )
        if "in_run_influence" in self.signals and (self.warmup == "none" or not self.warmup.influence):
            raise LocatedError(
                ["signals", self.signals.index("in_run_influence")],
                "in_run_influence is recorded during the target's own training run. Name its validation sets, as in "
                "warmup: {influence: [held_out], fraction: 1.0}.",
            )
        wrong = self._gradients_error()
        if wrong is not None:
            raise LocatedError(["gradients", "weights"], wrong)
        of_path = self.perturbation.directional and self.perturbation.endpoint is None
        if "perturbed_losses" in self.signals and of_path and self.warmup == "none":
            raise LocatedError(
                ["signals", self.signals.index("perturbed_losses")],
                "there is no endpoint to perturb towards. Name one (perturbation: {endpoint: FOLDER}), train one "
                "(warmup), or disable the directional path (perturbation: {directional: false}; not faithful to "
                "TEMP, and reported as such).",
            )
        return self

    def _kind_error(self) -> str | None:
        """Return why a target of this kind cannot measure its signals, with the fix; None if it can."""
        own = [(kind, signal) for kind, names in OF_KIND.items() for signal in names if signal in self.signals]
        others = [signal for signal in self.signals if signal not in OF_KIND.get(self.kind, ())]
        if self.kind != "language" and others:
            reason = (
                f"{own[0][1]} requires {KIND_TEXT[own[0][0]]}" if own else f"an endpoint provides {OF_KIND['judge'][0]}"
            )
            return f"{reason}. Measure {others[0]} with another target."
        if any(kind == "judge" for kind, _ in own) and self.endpoint is None:
            return (
                f"{own[0][1]} is measured by a model at an endpoint. Name its endpoint, as in endpoint: "
                "{url: http://HOST/v1}."
            )
        if self.kind != "language" and self.warmup != "none":
            return f"{KIND_TEXT[self.kind]} is measured without training. Add warmup: none."
        return None

    def _gradients_error(self) -> str | None:
        """Return why the configured gradients cannot be taken, with the fix; None if they can."""
        adapter = self.warmup != "none" and self.warmup.recipe().adapter == "lora"
        if self.gradients.weights == "adapter" and not adapter:
            return "the target's run trains no adapter. Take the gradients of layers (weights: layers)."
        if "adam_feature_trajectories" in self.signals and self.gradients.weights == "layers" and adapter:
            return (
                "adam_feature_trajectories are directions of the weights that the target's run trains, which is an "
                "adapter. Use weights: adapter, or train every weight (warmup: {adapter: full})."
            )
        return None

    @property
    def kind(self) -> Kind:
        """Return the kind of model, derived from its signals; a target with an endpoint is a judge."""
        if self.endpoint is not None:
            return "judge"
        kinds: tuple[Kind, ...] = ("embedding", "reward", "process_reward")
        return next((kind for kind in kinds if set(OF_KIND[kind]) & set(self.signals)), "language")

    def facts(self) -> TargetFacts:
        """Return the settings that decide whether a score is faithful to its source."""
        run = None
        if self.warmup != "none":
            warmup = self.warmup
            run = TrainingRun(warmup.recipe(), warmup.fraction, warmup.release, warmup.save_every)
        return TargetFacts(
            template=self.template,
            warmup=run,
            gradient_weights=self.gradients.weights,
            gradient_dimension=self.gradients.dimension,
            directional=self.perturbation.directional,
            reasoning_only=self.perturbation.reasoning_only,
        )


if TYPE_CHECKING:
    AnyScore = ScoreSection
    AnySelector = SelectorSection
else:
    # Every method and every selector brings the section of its parameters.
    AnyScore = Annotated[
        Union[tuple(method.section for method in METHODS.values())], Field(discriminator="method")  # noqa: UP007
    ]
    AnySelector = Annotated[
        Union[tuple(selector.section for selector in SELECTORS.values())], Field(discriminator="kind")  # noqa: UP007
    ]


def _or_kind(schema: dict[str, Any]) -> None:
    """Let a selector's kind stand for the section in the JSON Schema as well."""
    kinds = list(SELECTORS)
    schema["anyOf"] = [*schema["anyOf"], {"type": "string", "enum": kinds}]


class Budget(Section):
    """The size of a subset: exactly one of the three."""

    fraction: float | None = Field(None, gt=0, le=1, description="share of the eligible pool, rounded up")
    samples: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1, description="response tokens, counted by the score's target")

    @model_validator(mode="after")
    def _one_of(self) -> Budget:
        if sum(value is not None for value in (self.fraction, self.samples, self.tokens)) != 1:
            raise ValueError("set exactly one of fraction, samples and tokens")
        return self


ScoreName = Annotated[
    Annotated[str, Tag("name")] | Annotated[Combination, Tag("combination")],
    Discriminator(lambda value: "combination" if isinstance(value, dict | Combination) else "name"),
]
"""A score as subsets refer to it: by the name of one in `scores`, or as a combination of several."""


def score_title(score: ScoreName) -> str:
    """Return the name of a score in tables and messages."""
    return score if isinstance(score, str) else score.title


def names_of(score: ScoreName) -> list[str]:
    """Return the names of the configured scores behind a score."""
    return [score] if isinstance(score, str) else list(score.combine)


class Threshold(Section):
    """Keeps samples by a score. A sample without that score is excluded."""

    score: ScoreName = Field(description="name of a score, of any target, or a combination of scores")
    at_least: float | None = Field(None, description="lowest value that passes")
    at_most: float | None = Field(None, description="highest value that passes")
    top: float | None = Field(None, gt=0, le=1, description="share with the highest values that passes, rounded up")
    bottom: float | None = Field(None, gt=0, le=1, description="share with the lowest values that passes, rounded up")
    within: Literal["pool", "source", "domain", "prompt"] = Field(
        "pool",
        description="with top or bottom: the share is one of all samples that passed so far, or of those with the same "
        "source, domain or prompt",
    )

    @model_validator(mode="after")
    def _keeps_some(self) -> Threshold:
        bounds = self.at_least is not None or self.at_most is not None
        shares = [name for name in ("top", "bottom") if getattr(self, name) is not None]
        if bounds == bool(shares) or len(shares) > 1:
            raise ValueError(
                "set at_least, at_most or both, or else one of top and bottom. For several conditions, list the score "
                "several times."
            )
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"no value is at least {self.at_least:g} and at most {self.at_most:g}. Exchange them.")
        if bounds and self.within != "pool":
            raise ValueError("within has no effect on at_least and at_most. Remove it, or set top or bottom.")
        return self

    @property
    def title(self) -> str:
        """The condition as a short text, such as `difficulty >= 3`."""
        name = score_title(self.score)
        if self.top is not None or self.bottom is not None:
            share = f"top {self.top:.6%}" if self.top is not None else f"bottom {self.bottom:.6%}"
            share = share.rstrip("%").rstrip("0").rstrip(".")
            return f"{name}: {share}%" + ("" if self.within == "pool" else f" within {self.within}")
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} <= {name} <= {self.at_most:g}"
        return f"{name} <= {self.at_most:g}" if self.at_least is None else f"{name} >= {self.at_least:g}"


class Filters(Section):
    """Samples that may be selected; a subset's budget is a share of those that pass."""

    sources: list[str] | None = Field(None, min_length=1, description="keep only samples of these sources")
    generators: list[str] | None = Field(None, min_length=1, description="keep only responses of these generators")
    exclude_generators: list[str] | None = Field(
        None, min_length=1, description="exclude responses of these generators"
    )
    correct: bool | None = Field(
        None, description="true: keep only responses marked correct by the row or by its answer"
    )
    min_tokens: int | None = Field(None, ge=1, description="minimum length of the response")
    max_tokens: int | None = Field(None, ge=1, description="maximum length of the response")
    min_steps: int | None = Field(None, ge=1)
    max_steps: int | None = Field(None, ge=1)
    scores: list[Threshold] = Field(
        default=[], description="thresholds on scores, applied in this order: each to the samples that passed before"
    )


Stratum = Literal["source", "domain", "generator", "length", "steps"]


class Subset(Section):
    """A named subset: what a selector picks by a score, within a budget, from the pool or from another subset."""

    model_config = ConfigDict(serialize_by_alias=True)

    name: Name
    parent: Name | None = Field(
        None, alias="from", description="choose within this subset; default: from the whole pool"
    )
    score: ScoreName = Field(description="name of a score, or a combination of scores")
    budget: Budget
    selector: AnySelector | None = Field(
        None, description="selector; default: the method's", json_schema_extra=_or_kind
    )
    stratify: list[Stratum] = Field(
        default=[],
        description="select proportionally from each group: by source, domain, generator, decile of length, or steps",
    )
    standardise: Literal["source"] | None = Field(
        None,
        description="source: rank by z, the score's distance from the mean of the eligible samples of the same source, "
        "in standard deviations; default: rank by the score itself",
    )
    filters: Filters = Filters()

    @property
    def scores_read(self) -> list[str]:
        """The names of all configured scores that the subset reads, first those that it is ranked by, last the one
        whose vectors it compares."""
        thresholds = [name for threshold in self.filters.scores for name in names_of(threshold.score)]
        vectors = vectors_named(self.selector)
        return list(dict.fromkeys([*names_of(self.score), *thresholds, *([] if vectors is None else [vectors])]))

    @property
    def compares_within_sources(self) -> bool:
        """Return whether the selection compares samples with those of the same source only."""
        combined = isinstance(self.score, Combination) and self.score.within == "source"
        return combined or "source" in self.stratify or self.standardise == "source"

    @field_validator("stratify", mode="before")
    @classmethod
    def _nothing_is_no_stratum(cls, value: object) -> object:
        return [] if value is None else value

    @field_validator("selector", mode="before")
    @classmethod
    def _kind_alone(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value


class Releases(Section):
    """When to make releases, and the licences for their cards."""

    policy: Literal["manual", "on_change"] = Field(
        "manual", description="manual: with `curate release`; on_change: whenever `curate run` changed a subset"
    )
    licenses: dict[str, str] = Field(
        {}, description="licence of each source for the cards, as named by dataset hubs (apache-2.0, cc-by-4.0)"
    )


class Settings(Section):
    """The whole of curation.yaml."""

    version: Literal[1] = 1
    corpus: Corpus
    warehouse: str = Field(
        "./warehouse", description="folder, or prefix of a bucket (s3://, gs://, az://), that holds every table"
    )
    s3: S3 = S3()
    targets: list[Target] = Field(min_length=1)
    validation: list[ValidationSet] = Field(default=[])
    scores: list[AnyScore] = Field(default=[])
    subsets: list[Subset] = Field(default=[])
    engine: Engine = Engine()
    limits: Limits = Limits()
    alerts: Alerts = Alerts()
    freshness: Freshness = Freshness()
    releases: Releases = Releases()
    audit: Audit = Field(default=Audit(), description="settings of `curate audit`")
    evaluation: Evaluation | None = Field(None, description="settings of `curate evaluate`")

    @model_validator(mode="after")
    def _names_are_unique(self) -> Settings:
        for section in ("targets", "validation", "scores", "subsets"):
            seen: set[str] = set()
            for position, item in enumerate(getattr(self, section)):
                if item.name in seen:
                    raise LocatedError(
                        [section, position, "name"],
                        f"the name {item.name!r} is used twice. Choose distinct names.",
                    )
                seen.add(item.name)
        for position, target in enumerate(self.targets):
            if target.name in RESERVED_TARGET_NAMES:
                raise LocatedError(
                    ["targets", position, "name"], f"{target.name!r} is an asset group. Choose another name."
                )
        for position, score in enumerate(self.scores):
            if score.name in RESERVED_SCORE_NAMES:
                raise LocatedError(
                    ["scores", position, "name"],
                    f"{score.name!r} is a column of sample_scores. Choose another name.",
                )
        return self

    @model_validator(mode="after")
    def _runs_can_be_trained(self) -> Settings:
        chosen_by = {subset.name: self._targets_if_known(subset.name) for subset in self.subsets}
        for position, target in enumerate(self.targets):
            if target.warmup == "none":
                continue
            where: list[int | str] = ["targets", position, "warmup"]
            known = [validation.name for validation in self.validation]
            for name in target.warmup.influence:
                if name not in known:
                    raise LocatedError([*where, "influence"], unknown("validation set", name, known, "sets"))
            released = (target.warmup.release or "").partition("@")[0]
            if released and released not in chosen_by:
                raise LocatedError([*where, "release"], unknown("subset", released, chosen_by))
            before = [other.name for other in self.targets[:position]]
            later = [name for name in chosen_by.get(released, []) if name not in before]
            if later:
                raise LocatedError(
                    [*where, "release"],
                    f"subset {released} is selected by target {later[0]}, which is not listed before {target.name}. A "
                    "round builds on an earlier one: list that target first.",
                )
            if target.warmup.start is not None:
                wrong = self._start_error(position, target.warmup.start)
                if wrong is not None:
                    raise LocatedError([*where, "start"], wrong)
        return self

    def _start_error(self, position: int, start: str) -> str | None:
        """Return why a target's run cannot start from another's weights, with the fix; None if it can."""
        target, before = self.targets[position], {target.name: target for target in self.targets[:position]}
        if start not in before:
            return f"{unknown('target', start, before)} (a run can only start from a target listed before it)"
        for one in (target, before[start]):
            if one.warmup == "none" or one.warmup.recipe().adapter != "full":
                return (
                    f"target {one.name} does not train every weight. Add adapter: full, or preset: grape, to its "
                    "warmup."
                )
        models = [(one.model, one.revision, one.trust_remote_code) for one in (target, before[start])]
        if models[0] != models[1]:
            return (
                f"target {start} uses another model ({before[start].model}). A run can only start from weights of "
                "its own target's model, revision and trust_remote_code."
            )
        theirs = {"base_likelihoods", "perturbed_losses"} & set(target.signals)
        if theirs:
            return (
                f"{', '.join(sorted(theirs))} need the target's original model. Remove them from signals, or remove "
                "start."
            )
        return None

    def _targets_if_known(self, name: str) -> list[str]:
        """Return the targets whose scores a subset and those before it read, as far as their names exist."""
        of, subsets = {score.name: score.target for score in self.scores}, {one.name: one for one in self.subsets}
        found: dict[str, None] = {}
        seen: set[str] = set()
        while name in subsets and name not in seen:
            seen.add(name)
            found |= {of[score]: None for score in subsets[name].scores_read if score in of}
            name = subsets[name].parent or ""
        return list(found)

    @model_validator(mode="after")
    def _references_exist(self) -> Settings:
        targets = {target.name: target for target in self.targets}
        scores = sorted(score.name for score in self.scores)
        known = [validation.name for validation in self.validation]
        for position, score in enumerate(self.scores):
            if score.target not in targets:
                raise LocatedError(["scores", position, "target"], unknown("target", score.target, targets))
            measured = targets[score.target].signals
            lacking = ", ".join(signal for signal in method_of(score).signals(score) if signal not in measured)
            if lacking:
                raise LocatedError(
                    ["scores", position, "target"],
                    f"method {score.method} needs {lacking}, which target {score.target!r} does not measure. Add "
                    f"{lacking} to its signals, or name another target.",
                )
            for name in method_of(score).validation(score):
                if name not in known:
                    raise LocatedError(
                        ["scores", position, "validation"], unknown("validation set", name, known, "sets")
                    )
        for position, subset in enumerate(self.subsets):
            self._check_subset(position, subset, scores)
            score = self.score_of(subset)
            vectors = self._vectors_of(position, subset, scores)
            lacks = selector_problem(subset.selector, vectors or score)
            if lacks is not None:
                where: list[int | str] = ["subsets", position, "selector"]
                raise LocatedError([*where, "vectors"] if vectors else where, lacks)
            selector = subset.selector or method_of(score).default_selector(score)
            refused = budget_problem(subset.budget.tokens is not None, bool(subset.stratify), selector)
            if refused is not None:
                raise LocatedError(["subsets", position, refused[0]], refused[1])
        if self.evaluation is not None:
            chosen_by = {subset.name: self.score_of(subset).target for subset in self.subsets}
            without_head = [target.name for target in self.targets if target.kind != "language"]
            refuse_unknown_names(self.evaluation, chosen_by, list(targets), without_head)
        return self

    def _check_subset(self, position: int, subset: Subset, scores: Sequence[str]) -> None:
        """Refuse names of scores that do not exist, and a subset that would be chosen from itself."""
        where: list[int | str] = ["subsets", position]
        named: list[tuple[list[int | str], ScoreName]] = [([*where, "score"], subset.score)]
        for number, threshold in enumerate(subset.filters.scores):
            named.append(([*where, "filters", "scores", number, "score"], threshold.score))
        for place, score in named:
            for name in names_of(score):
                if name not in scores:
                    inner = [] if isinstance(score, str) else ["combine", name]
                    raise LocatedError([*place, *inner], unknown("score", name, scores))
        known, path = {one.name: one for one in self.subsets}, [subset.name]
        if subset.parent is not None and subset.parent not in known:
            raise LocatedError([*where, "from"], unknown("subset", subset.parent, known))
        # A subset before that does not exist, or a circle of others, is reported at those.
        while (before := known[path[-1]].parent) in known:
            if before == subset.name:
                circle = " from ".join([*path, before])
                raise LocatedError(
                    [*where, "from"], f"{circle} is a circle. Remove one `from`, so that a subset starts at the pool."
                )
            if before in path:
                return
            path.append(before)

    def _vectors_of(self, position: int, subset: Subset, scores: Sequence[str]) -> ScoreSection | None:
        """Return the score that a subset's selector takes vectors from, if it names one."""
        name = vectors_named(subset.selector)
        if name is None:
            return None
        if name not in scores:
            raise LocatedError(["subsets", position, "selector", "vectors"], unknown("score", name, scores))
        return self.score(name)

    def target(self, name: str) -> Target:
        """Return the target of that name (KeyError if it does not exist)."""
        return {target.name: target for target in self.targets}[name]

    def score(self, name: str) -> ScoreSection:
        """Return the score of that name (KeyError if it does not exist)."""
        return {score.name: score for score in self.scores}[name]

    def score_of(self, subset: Subset) -> ScoreSection:
        """Return the score that a subset is ranked by; a combination as a score of its first component's target."""
        if isinstance(subset.score, str):
            return self.score(subset.score)
        parts = [self.score(name) for name in subset.score.combine]
        return Combined(
            name=subset.score.title,
            target=parts[0].target,
            min_steps=max(part.min_steps for part in parts),
            combination=subset.score,
        )

    def vector_score_of(self, subset: Subset) -> ScoreSection:
        """Return the score whose method provides the vectors that a subset's selector compares."""
        name = vectors_named(subset.selector)
        return self.score_of(subset) if name is None else self.score(name)

    def step_score_of(self, subset: Subset) -> ScoreSection:
        """Return the score whose steps are shown for a subset: of a combination, the first that scores steps."""
        parts = [self.score(name) for name in names_of(subset.score)]
        return next((part for part in parts if method_of(part).scores_steps), parts[0])

    def targets_of(self, subset: Subset) -> list[str]:
        """Return the targets whose scores or vectors a subset reads, first the one whose tokens its budget counts."""
        return list(dict.fromkeys(self.score(name).target for name in subset.scores_read))

    def chain(self, subset: Subset) -> list[Subset]:
        """Return the subsets that a subset is chosen from, first the one that is chosen from the pool, and itself."""
        found = [subset]
        while (before := found[0].parent) is not None:
            found.insert(0, self.subset(before))
        return found

    @property
    def ordered_subsets(self) -> list[Subset]:
        """All subsets, each after the one that it is chosen from."""
        return list({one.name: one for subset in self.subsets for one in self.chain(subset)}.values())

    def subset(self, name: str) -> Subset:
        """Return the subset of that name (KeyError if it does not exist)."""
        return {subset.name: subset for subset in self.subsets}[name]

    def validation_set(self, name: str) -> ValidationSet:
        """Return the validation set of that name (KeyError if it does not exist)."""
        return {validation.name: validation for validation in self.validation}[name]

    def scores_of(self, target: str) -> list[ScoreSection]:
        """Return the scores that are computed from a target's signals."""
        return [score for score in self.scores if score.target == target]

    def measured_signals(self, target: Target) -> list[SignalName]:
        """Return all signals that a target measures: its own, then those measured on validation sets only."""
        held_out = [
            signal
            for score in self.scores_of(target.name)
            if method_of(score).validation(score)
            for signal in method_of(score).validation_signals(score)
        ]
        return [*target.signals, *dict.fromkeys(signal for signal in held_out if signal not in target.signals)]

    def signals_of_scores(self, target: Target) -> list[SignalName]:
        """Return the signals behind a target's `sample_scores`: those of its scores, or else one that provides
        lengths."""
        wanted = {signal for score in self.scores_of(target.name) for signal in method_of(score).signals(score)}
        return [signal for signal in target.signals if signal in wanted] or target.signals[:1]


def vectors_named(section: SelectorSection | None) -> str | None:
    """Return the score that a selector takes vectors from; None: the subset's own."""
    return section.vectors if isinstance(section, VectorSelector) else None


def selector_problem(section: SelectorSection | None, score: ScoreSection) -> str | None:
    """Return why a selector cannot be used with a score's method, with the fix; None if it can."""
    if section is None:
        return None
    method, selector = method_of(score), selector_of(section)
    if _fits(selector, method) and not (selector.validation and not method.validation(score)):
        return None
    *most, last = [other.name for other in METHODS.values() if _fits(selector, other)] or ["(none is installed)"]
    return (
        f"{section.kind} needs {selector.needs}, which method {method.name} does not have. Choose a score with method "
        f"{', '.join(most) + ' or ' if most else ''}{last}{_or_vectors(section)}, or another selector."
    )


def _or_vectors(section: SelectorSection) -> str:
    return ", name such a score as the selector's vectors" if isinstance(section, VectorSelector) else ""


def _fits(selector: Selector, method: Method) -> bool:
    """Return True if scores of a method can have what a selector needs."""
    if selector.validation and "validation" not in method.section.model_fields:
        return False
    if selector.signal is not None:
        return method.vectors == selector.signal
    return not selector.vectors or method.vectors is not None


def budget_problem(by_tokens: bool, by_strata: bool, section: SelectorSection) -> tuple[str, str] | None:
    """Return why a selector that apportions the budget itself cannot be used: the key and the message, or None."""
    if not selector_of(section).apportions:
        return None
    if by_tokens:
        return (
            "budget",
            f"selector {section.kind} apportions a number of samples. Set fraction or samples in the budget.",
        )
    if by_strata:
        return "stratify", f"selector {section.kind} apportions the budget to groups itself. Remove stratify."
    return None
