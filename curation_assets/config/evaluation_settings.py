"""Section `evaluation` of `curation.yaml`: what to train, on which data, and which benchmarks to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from curation_assets.config.checkpoint_settings import FineTuning
from curation_assets.config.corpus_settings import FieldPath
from curation_assets.tables.evaluation import RELATIVE_AVERAGE
from curation_resources.sections import LocatedError, Name, Section, unknown

Baseline = Literal["random", "longest", "stepmax"]
Metric = Literal["exact_match", "loss"]


def _or_metric(schema: dict[str, Any]) -> None:
    """Let one metric's name stand for the list in the JSON Schema as well."""
    listed = {name: schema.pop(name) for name in ("type", "items", "minItems")}
    schema["anyOf"] = [listed, {"type": "string", "enum": list(get_args(Metric))}]


class BenchmarkColumns(Section):
    """Field names in the benchmark's rows; use dots for nested fields."""

    prompt: FieldPath | None = Field(
        None,
        description="a text or a list of turns; default: the first of prompt, question, problem, ... that a row has",
    )
    answer: FieldPath | None = Field(
        None, description="default: the first of answer, final_answer, reference_answer, ... that a row has"
    )
    response: FieldPath | None = Field(
        None,
        description="the right response, or a list of responses, for metric loss; default: found as in the corpus, "
        "such as response, solution, output, or an answer with its reasoning",
    )
    correct: FieldPath | None = Field(
        None,
        description="whether each response is right; default: correct or is_correct; without marks, every response is",
    )


class Benchmark(Section):
    """Held-out problems with their correct answers or right responses."""

    name: Name
    path: str = Field(
        description="a .jsonl, .jsonl.gz or .parquet file with a prompt per row, and its correct answer (metric "
        "exact_match) or a right response (metric loss)"
    )
    metric: list[Metric] = Field(
        default=["exact_match"],
        min_length=1,
        description="exact_match: generate answers and compare them; loss: mean NLL of right responses, lower is "
        "better, without generation; one of them, or both in a list",
        json_schema_extra=_or_metric,
    )
    columns: BenchmarkColumns = BenchmarkColumns()

    @field_validator("metric", mode="before")
    @classmethod
    def _metric_alone(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("metric")
    @classmethod
    def _each_metric_once(cls, value: list[Metric]) -> list[Metric]:
        if len(set(value)) < len(value):
            raise ValueError(f"{', '.join(value)}: a metric is listed twice. Remove one.")
        return value


class Evaluation(Section):
    """Settings of `curate evaluate` (docs/evaluation.md).

    In addition to every subset, one arm trains on the full pool, and the base model is evaluated without training.
    """

    benchmarks: list[Benchmark] = Field(min_length=1)
    seeds: list[int] = Field(
        default=[0, 1, 2], min_length=1, description="seeds of the fine-tuning runs; every arm is trained once per seed"
    )
    target: Name | None = Field(
        None, description="evaluate only this target's subsets; default: the subsets of all targets"
    )
    subsets: list[Name] | None = Field(None, min_length=1, description="evaluate only these subsets; default: all")
    models: list[Name] | None = Field(
        None,
        min_length=1,
        description="targets whose models are trained, regardless of which target selected the subset (transfer); "
        "default: the target that selected it",
    )
    baselines: list[Baseline] = Field(
        default=["random"],
        description="baselines with as many samples as each subset, of those that pass its filters: random (drawn "
        "again for every seed), longest, or stepmax (most steps)",
    )
    random_draws: int | None = Field(
        None,
        ge=1,
        description="number of random draws of each size, if more than seeds: their spread is the yardstick for every "
        "difference; further draws have the next free seeds",
    )
    training: FineTuning = Field(
        default=FineTuning(), description="fine-tuning recipe, the same for every arm; the seed comes from seeds"
    )
    equal_steps: bool = Field(
        False,
        description="train every arm of a model for the same number of optimizer steps: that of its largest evaluated "
        "subset; smaller arms repeat their samples, and larger ones stop early",
    )
    max_new_tokens: int = Field(512, ge=1, description="maximum number of tokens per answer")
    batch_tokens: int = Field(16384, ge=1, description="prompt and answer tokens per generation batch")

    @field_validator("baselines", mode="before")
    @classmethod
    def _nothing_is_no_baseline(cls, value: object) -> object:
        return [] if value is None else value

    @field_validator("seeds")
    @classmethod
    def _seeds_are_seeds(cls, value: list[int]) -> list[int]:
        for position, seed in enumerate(value):
            if not 0 <= seed < 2**32:
                raise LocatedError([position], f"{seed} is not a valid seed. Use whole numbers from 0 to {2**32 - 1}.")
            if seed in value[:position]:
                raise LocatedError(
                    [position], f"seed {seed} is listed twice. Runs with the same seed are identical: remove one."
                )
        return value


class Audit(Section):
    """Settings of `curate audit` (docs/audit.md)."""

    samples: int = Field(100, ge=1, le=2000, description="samples to draw from the pool")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the draw and of the flaws")
    kinds: list[Name] | None = Field(
        None, min_length=1, description="kinds of flaws, such as wrong_number; default: all (docs/audit.md)"
    )


def refuse_unknown_names(
    evaluation: Evaluation, chosen_by: Mapping[str, str], targets: Sequence[str], without_head: Sequence[str]
) -> None:
    """Check the names in the evaluation section against the rest of the file.

    Args:
        evaluation: the section.
        chosen_by: the target that selected each subset, by the subset's name.
        targets: names of all targets.
        without_head: names of the targets whose model cannot generate answers.

    Raises:
        LocatedError: a name is unknown or listed twice, or its model cannot be trained to answer.
    """
    names = [benchmark.name for benchmark in evaluation.benchmarks]
    for position, name in enumerate(names):
        if name in names[:position]:
            raise LocatedError(
                ["evaluation", "benchmarks", position, "name"],
                f"the name {name!r} is used twice. Choose distinct names.",
            )
        if name == RELATIVE_AVERAGE:
            raise LocatedError(
                ["evaluation", "benchmarks", position, "name"],
                f"the name {name!r} is reserved for the summary over all benchmarks. Choose another name.",
            )
    if evaluation.target is not None and evaluation.target not in targets:
        raise LocatedError(["evaluation", "target"], unknown("target", evaluation.target, targets))
    for position, name in enumerate(evaluation.subsets or []):
        if name not in chosen_by:
            raise LocatedError(["evaluation", "subsets", position], unknown("subset", name, chosen_by))
        if evaluation.target not in (None, chosen_by[name]):
            raise LocatedError(
                ["evaluation", "subsets", position],
                f"subset {name} is selected by target {chosen_by[name]}, but evaluation.target is "
                f"{evaluation.target}. Remove {name} from evaluation.subsets, or remove evaluation.target.",
            )
    for position, name in enumerate(evaluation.models or []):
        if name not in targets:
            raise LocatedError(["evaluation", "models", position], unknown("target", name, targets))
        if name in without_head:
            raise LocatedError(
                ["evaluation", "models", position],
                f"target {name} is an embedding model, which cannot generate answers. Name a language model.",
            )
    _refuse_what_cannot_answer(evaluation, chosen_by, without_head)


def _refuse_what_cannot_answer(
    evaluation: Evaluation, chosen_by: Mapping[str, str], without_head: Sequence[str]
) -> None:
    """Refuse a subset whose own model would be trained but cannot answer; named models replace it."""
    if evaluation.models is not None:
        return
    for name, target in chosen_by.items():
        wanted = evaluation.subsets is None or name in evaluation.subsets
        if wanted and evaluation.target in (None, target) and target in without_head:
            raise LocatedError(
                ["evaluation"],
                f"subset {name} is selected by target {target}, an embedding model, which cannot generate answers. "
                "Name the targets to train (models: [...]), or exclude the subset (subsets: [...]).",
            )
