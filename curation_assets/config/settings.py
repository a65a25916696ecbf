"""The schema of what a user configures: `curation.yaml`.

Only shape, defaults and combinations live here; reading the file and pointing at a faulty line is
`curation_assets.config.config_file`. Formulas and sources of the defaults: docs/methods.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args

from pydantic import Field, field_validator, model_validator

from curation_assets.config.checkpoint_settings import Perturbation, Warmup
from curation_assets.config.corpus_settings import Corpus, ValidationSet
from curation_assets.config.evaluation_settings import Evaluation, refuse_unknown_names
from curation_assets.config.gradient_settings import Gradients
from curation_assets.config.judge_settings import Endpoint
from curation_assets.config.running_settings import S3, Alerts, Engine, Freshness, Limits
from curation_assets.methods.compatibility import what_a_selector_lacks, what_shares_cannot
from curation_assets.methods.method import ScoreSection, TargetFacts, TrainingRun
from curation_assets.methods.registry import METHODS, method_of
from curation_assets.methods.selector import BY_SHARES, AnySelector, SelectorKind
from curation_assets.tables import SAMPLE_SCORES
from curation_resources.scoring.samples import Proxy
from curation_resources.scoring.spec import Template
from curation_resources.sections import ALONG_A_RUN, OF_KIND, Kind, LocatedError, Name, Section, SignalName, unknown

# Asset keys and groups that are not a target's.
RESERVED_TARGET_NAMES = {"corpus", "validation", "subsets", "releases", "reports"}

# A named score becomes a column of `sample_scores`, and the column `score` of a pool.
RESERVED_SCORE_NAMES = {*SAMPLE_SCORES.columns, "score"}


def _or_null(schema: dict[str, Any]) -> None:
    """In the JSON Schema too, null stands for the word none."""
    schema["anyOf"] = [*schema["anyOf"], {"type": "null"}]


KIND_TEXT = {"embedding": "an embedding model", "reward": "a reward model", "judge": "a judge"}


class Target(Section):
    """A model that samples are measured with; its name is the prefix of its assets."""

    name: Name
    model: str = Field(description="folder with config.json, safetensors and a tokenizer, or a hub id")
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    signals: list[SignalName] = Field(
        default=["step_gradients"], min_length=1, description="what one pass measures; what is not listed costs nothing"
    )
    proxy: Proxy = Field(
        "bias", description="which gradient stands for a segment's in step_gradients and their trajectories"
    )
    warmup: Warmup | Literal["none"] = Field(
        default=Warmup(),
        description="none: measure at the base model (unfaithful to GRACE, reported so)",
        json_schema_extra=_or_null,
    )
    perturbation: Perturbation = Field(
        default=Perturbation(), description="the checkpoints that perturbed_losses are measured at"
    )
    endpoint: Endpoint | None = Field(None, description="ask `model` there, as a judge: instruction_tags, difficulty")
    gradients: Gradients = Field(default=Gradients(), description="what gradient norms and features are of")
    template: Template = Field(
        "auto",
        description="auto: the tokenizer's chat template if it has one; plain: turns joined by newlines; "
        "question_answer: GRAPE's `Question: {prompt} \\n Answer: {response}`",
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
        wrong_kind = self._what_kind_lacks()
        if wrong_kind is not None:
            raise LocatedError(["signals"], wrong_kind)
        on_the_way = [signal for signal in self.signals if signal in ALONG_A_RUN]
        if on_the_way and (self.warmup == "none" or self.warmup.save_every is None):
            raise LocatedError(
                ["signals", self.signals.index(on_the_way[0])],
                f"{on_the_way[0]} are measured at the checkpoints of the target's own training run: add save_every to "
                "its warmup, as in warmup: {save_every: epoch}",
            )
        if "base_likelihoods" in self.signals and self.warmup == "none":
            raise LocatedError(
                ["signals", self.signals.index("base_likelihoods")],
                "base_likelihoods tell a trained checkpoint from the model that it was trained from; with warmup: none "
                "these are one: use likelihoods",
            )
        if "in_run_influence" in self.signals and (self.warmup == "none" or not self.warmup.influence):
            raise LocatedError(
                ["signals", self.signals.index("in_run_influence")],
                "in_run_influence is told by the target's own training run: name the validation sets that it is on, as "
                "in warmup: {influence: [held_out], fraction: 1.0}",
            )
        wrong = self._what_gradients_lack()
        if wrong is not None:
            raise LocatedError(["gradients", "weights"], wrong)
        of_path = self.perturbation.directional and self.perturbation.endpoint is None
        if "perturbed_losses" in self.signals and of_path and self.warmup == "none":
            raise LocatedError(
                ["signals", self.signals.index("perturbed_losses")],
                "there is no endpoint to perturb towards: name one (perturbation: {endpoint: FOLDER}), let one be "
                "trained (warmup), or leave the path out (perturbation: {directional: false}; unfaithful to TEMP, and "
                "reported so)",
            )
        return self

    def _what_kind_lacks(self) -> str | None:
        """Why a target of this kind cannot measure what it lists, and the mend; None if it can."""
        own = [(kind, signal) for kind, names in OF_KIND.items() for signal in names if signal in self.signals]
        others = [signal for signal in self.signals if signal not in OF_KIND.get(self.kind, ())]
        if self.kind != "language" and others:
            whose = f"{own[0][1]} are {KIND_TEXT[own[0][0]]}'s" if own else f"an endpoint gives {OF_KIND['judge'][0]}"
            return f"{whose}: measure {others[0]} with another target"
        if any(kind == "judge" for kind, _ in own) and self.endpoint is None:
            return f"{own[0][1]} is what a judge says: name where it is asked, as in endpoint: {{url: http://HOST/v1}}"
        if self.kind != "language" and self.warmup != "none":
            return f"{KIND_TEXT[self.kind]} is measured as it is: add warmup: none"
        return None

    def _what_gradients_lack(self) -> str | None:
        """Why gradients cannot be taken as they are asked for, and the mend; None if they can."""
        adapter = self.warmup != "none" and self.warmup.recipe().adapter == "lora"
        if self.gradients.weights == "adapter" and not adapter:
            return "the target's run trains no adapter: take the gradients of layers (weights: layers)"
        if "adam_feature_trajectories" in self.signals and self.gradients.weights == "layers" and adapter:
            return (
                "adam_feature_trajectories are directions of what the target's run trains, which is an adapter: take "
                "weights: adapter, or train every weight (warmup: {adapter: full})"
            )
        return None

    @property
    def kind(self) -> Kind:
        """What the model is, by its signals; with an endpoint it is asked there."""
        if self.endpoint is not None:
            return "judge"
        kinds: tuple[Kind, ...] = ("embedding", "reward")
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
else:
    # Every method brings the section of its parameters.
    AnyScore = Annotated[
        Union[tuple(method.section for method in METHODS.values())], Field(discriminator="method")  # noqa: UP007
    ]


def _or_kind(schema: dict[str, Any]) -> None:
    """In the JSON Schema too, a selector's kind may stand for the section."""
    kinds = list(get_args(SelectorKind))
    schema["anyOf"] = [*schema["anyOf"], {"type": "string", "enum": kinds}]


class Budget(Section):
    """How much to select: exactly one of the three."""

    fraction: float | None = Field(None, gt=0, le=1, description="share of the eligible pool, rounded up")
    samples: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1, description="response tokens of the score's target")

    @model_validator(mode="after")
    def _one_of(self) -> Budget:
        if sum(value is not None for value in (self.fraction, self.samples, self.tokens)) != 1:
            raise ValueError("give exactly one of fraction, samples and tokens")
        return self


class Filters(Section):
    """Which samples of the pool may be chosen; every subset's budget is a share of those that pass."""

    sources: list[str] | None = Field(None, min_length=1, description="only samples of these sources")
    generators: list[str] | None = Field(None, min_length=1, description="only responses of these generators")
    exclude_generators: list[str] | None = Field(None, min_length=1, description="no responses of these generators")
    correct: bool | None = Field(None, description="true: only responses that the row, or its answer, says are right")
    min_tokens: int | None = Field(None, ge=1, description="of the response")
    max_tokens: int | None = Field(None, ge=1, description="of the response")
    min_steps: int | None = Field(None, ge=1)
    max_steps: int | None = Field(None, ge=1)


Stratum = Literal["source", "domain", "generator", "length", "steps"]


class Subset(Section):
    """A named subset: what a selector chooses of the pool by one score, within a budget."""

    name: Name
    score: str
    budget: Budget
    selector: AnySelector | None = Field(
        None, description="how it is chosen; default: the method's", json_schema_extra=_or_kind
    )
    stratify: list[Stratum] = Field(
        default=[],
        description="from each group its share: by source, domain, generator, decile of length or steps",
    )
    filters: Filters = Filters()

    @field_validator("stratify", mode="before")
    @classmethod
    def _nothing_is_no_stratum(cls, value: object) -> object:
        return [] if value is None else value

    @field_validator("selector", mode="before")
    @classmethod
    def _kind_alone(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value


class Releases(Section):
    """When releases are made."""

    policy: Literal["manual", "on_change"] = Field(
        "manual", description="manual: by `curate release`; on_change: whenever `curate run` changed a subset"
    )
    licenses: dict[str, str] = Field(
        {}, description="licence of each source, as dataset hubs name it (apache-2.0, cc-by-4.0): for the cards"
    )


class Settings(Section):
    """The whole of curation.yaml."""

    version: Literal[1] = 1
    corpus: Corpus
    warehouse: str = Field("./warehouse", description="folder, or s3://bucket/prefix, in which every table is kept")
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
    evaluation: Evaluation | None = Field(None, description="what `curate evaluate` trains and asks")

    @model_validator(mode="after")
    def _names_are_unique(self) -> Settings:
        for section in ("targets", "validation", "scores", "subsets"):
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
    def _runs_can_be_trained(self) -> Settings:
        scored = {score.name: score.target for score in self.scores}
        chosen_by = {subset.name: scored.get(subset.score) for subset in self.subsets}
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
            if released and chosen_by[released] not in before:
                raise LocatedError(
                    [*where, "release"],
                    f"subset {released} is chosen by target {chosen_by[released]}, which comes no earlier than "
                    f"{target.name}: a round rests on an earlier one; list that target before this one",
                )
            if target.warmup.start is not None:
                wrong = self._what_keeps_from_starting(position, target.warmup.start)
                if wrong is not None:
                    raise LocatedError([*where, "start"], wrong)
        return self

    def _what_keeps_from_starting(self, position: int, start: str) -> str | None:
        """Why a target's run cannot go on from another's, and the mend; None if it can."""
        target, before = self.targets[position], {target.name: target for target in self.targets[:position]}
        if start not in before:
            return f"{unknown('target', start, before)} (a run goes on from a target that is listed before it)"
        for one in (target, before[start]):
            if one.warmup == "none" or one.warmup.recipe().adapter != "full":
                return (
                    f"target {one.name} does not train every weight: add adapter: full, or preset: grape, to its warmup"
                )
        models = [(one.model, one.revision, one.trust_remote_code) for one in (target, before[start])]
        if models[0] != models[1]:
            return (
                f"target {start} is another model ({before[start].model}): a run goes on from weights of its own "
                "target's model, revision and trust_remote_code"
            )
        theirs = {"base_likelihoods", "perturbed_losses"} & set(target.signals)
        if theirs:
            return f"{', '.join(sorted(theirs))} look at the target's model as it is: leave them out, or start"
        return None

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
                    f"method {score.method} is computed from {lacking}, which target {score.target!r} does not "
                    f"measure; add {lacking} to its signals, or name another target",
                )
            for name in method_of(score).validation(score):
                if name not in known:
                    raise LocatedError(
                        ["scores", position, "validation"], unknown("validation set", name, known, "sets")
                    )
        for position, subset in enumerate(self.subsets):
            if subset.score not in scores:
                raise LocatedError(["subsets", position, "score"], unknown("score", subset.score, scores))
            score = self.score(subset.score)
            lacks = what_a_selector_lacks(subset.selector, score)
            if lacks is not None:
                raise LocatedError(["subsets", position, "selector"], lacks)
            selector = subset.selector or method_of(score).selector
            if isinstance(selector, BY_SHARES):
                at, wrong = what_shares_cannot(subset.budget.tokens is not None, bool(subset.stratify), selector.kind)
                if wrong is not None:
                    raise LocatedError(["subsets", position, at], wrong)
        if self.evaluation is not None:
            chosen_by = {subset.name: self.score(subset.score).target for subset in self.subsets}
            without_head = [target.name for target in self.targets if target.kind != "language"]
            refuse_unknown_names(self.evaluation, chosen_by, list(targets), without_head)
        return self

    def target(self, name: str) -> Target:
        """The target of that name (KeyError if there is none)."""
        return {target.name: target for target in self.targets}[name]

    def score(self, name: str) -> ScoreSection:
        """The score of that name (KeyError if there is none)."""
        return {score.name: score for score in self.scores}[name]

    def subset(self, name: str) -> Subset:
        """The subset of that name (KeyError if there is none)."""
        return {subset.name: subset for subset in self.subsets}[name]

    def validation_set(self, name: str) -> ValidationSet:
        """The validation set of that name (KeyError if there is none)."""
        return {validation.name: validation for validation in self.validation}[name]

    def scores_of(self, target: str) -> list[ScoreSection]:
        """The scores that are computed from a target's signals."""
        return [score for score in self.scores if score.target == target]

    def measured_signals(self, target: Target) -> list[SignalName]:
        """All signals that are measured with a target: its own, then those of validation sets alone."""
        held_out = [
            signal
            for score in self.scores_of(target.name)
            if method_of(score).validation(score)
            for signal in method_of(score).validation_signals(score)
        ]
        return [*target.signals, *dict.fromkeys(signal for signal in held_out if signal not in target.signals)]

    def signals_of_scores(self, target: Target) -> list[SignalName]:
        """The signals that a target's `sample_scores` rest on: those of its scores, or one that tells lengths."""
        wanted = {signal for score in self.scores_of(target.name) for signal in method_of(score).signals(score)}
        return [signal for signal in target.signals if signal in wanted] or target.signals[:1]
