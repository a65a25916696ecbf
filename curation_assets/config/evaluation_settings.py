"""The part of `curation.yaml` about the evaluation that closes the loop: what is trained, on what, and asked what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, field_validator

from curation_assets.config.checkpoint_settings import FineTuning
from curation_assets.config.corpus_settings import FieldPath
from curation_assets.tables.evaluation import RELATIVE_AVERAGE
from curation_resources.sections import LocatedError, Name, Section, unknown

Baseline = Literal["random", "longest", "stepmax"]


class BenchmarkColumns(Section):
    """The rows' own names, dots for nesting."""

    prompt: FieldPath | None = Field(
        None, description="a text or a list of turns; default: prompt, question, problem, ...: the first that a row has"
    )
    answer: FieldPath | None = Field(
        None, description="default: answer, final_answer, reference_answer, ...: the first that a row has"
    )


class Benchmark(Section):
    """Held-out problems with their right answers."""

    name: Name
    path: str = Field(description="a .jsonl, .jsonl.gz or .parquet file: a prompt and its right answer a row")
    columns: BenchmarkColumns = BenchmarkColumns()


class Evaluation(Section):
    """What `curate evaluate` trains and asks (docs/evaluation.md).

    Beside every subset, the full pool is trained on, and the untouched base model is asked.
    """

    benchmarks: list[Benchmark] = Field(min_length=1)
    seeds: list[int] = Field(
        default=[0, 1, 2], min_length=1, description="of the fine-tuning runs: every arm is trained once with each"
    )
    target: Name | None = Field(None, description="only subsets that this target chose; default: those of all targets")
    subsets: list[Name] | None = Field(None, min_length=1, description="only these subsets; default: all")
    models: list[Name] | None = Field(
        None,
        min_length=1,
        description="targets whose models are trained, whoever chose the subset (transfer); default: who chose it",
    )
    baselines: list[Baseline] = Field(
        default=["random"],
        description="beside every size of a subset, as many samples of the pool: drawn anew for every seed, the "
        "longest, those of most steps",
    )
    training: FineTuning = Field(
        default=FineTuning(), description="the recipe of the fine-tuning, the same for every arm; its seed is of seeds"
    )
    max_new_tokens: int = Field(512, ge=1, description="tokens after which an answer is cut off")
    batch_tokens: int = Field(16384, ge=1, description="prompt and answer tokens that are generated together")

    @field_validator("baselines", mode="before")
    @classmethod
    def _nothing_is_no_baseline(cls, value: object) -> object:
        return [] if value is None else value

    @field_validator("seeds")
    @classmethod
    def _seeds_are_seeds(cls, value: list[int]) -> list[int]:
        for position, seed in enumerate(value):
            if not 0 <= seed < 2**32:
                raise LocatedError([position], f"{seed} is no seed: give whole numbers from 0 to {2**32 - 1}")
            if seed in value[:position]:
                raise LocatedError([position], f"{seed} stands twice; a run with the same seed is the same run")
        return value


def refuse_unknown_names(
    evaluation: Evaluation, chosen_by: Mapping[str, str], targets: Sequence[str], without_head: Sequence[str]
) -> None:
    """Hold the names of an evaluation against the rest of the file.

    Args:
        evaluation: the section.
        chosen_by: by subset, the target that chose it.
        targets: all targets.
        without_head: those whose model cannot answer.

    Raises:
        LocatedError: a name does not exist, stands twice, or its model cannot be trained to answer.
    """
    names = [benchmark.name for benchmark in evaluation.benchmarks]
    for position, name in enumerate(names):
        if name in names[:position]:
            raise LocatedError(
                ["evaluation", "benchmarks", position, "name"], f"the name {name!r} is used twice; names must differ"
            )
        if name == RELATIVE_AVERAGE:
            raise LocatedError(
                ["evaluation", "benchmarks", position, "name"],
                f"{name!r} stands for all benchmarks; choose another name",
            )
    if evaluation.target is not None and evaluation.target not in targets:
        raise LocatedError(["evaluation", "target"], unknown("target", evaluation.target, targets))
    for position, name in enumerate(evaluation.subsets or []):
        if name not in chosen_by:
            raise LocatedError(["evaluation", "subsets", position], unknown("subset", name, chosen_by))
        if evaluation.target not in (None, chosen_by[name]):
            raise LocatedError(
                ["evaluation", "subsets", position],
                f"subset {name} is chosen by target {chosen_by[name]}, and evaluation.target is {evaluation.target}: "
                "leave one of them out",
            )
    for position, name in enumerate(evaluation.models or []):
        if name not in targets:
            raise LocatedError(["evaluation", "models", position], unknown("target", name, targets))
        if name in without_head:
            raise LocatedError(
                ["evaluation", "models", position],
                f"target {name} is an embedding model, which answers nothing: name a language model",
            )
    _refuse_what_cannot_answer(evaluation, chosen_by, without_head)


def _refuse_what_cannot_answer(
    evaluation: Evaluation, chosen_by: Mapping[str, str], without_head: Sequence[str]
) -> None:
    """A subset is trained on with the model that chose it, unless others are named."""
    if evaluation.models is not None:
        return
    for name, target in chosen_by.items():
        wanted = evaluation.subsets is None or name in evaluation.subsets
        if wanted and evaluation.target in (None, target) and target in without_head:
            raise LocatedError(
                ["evaluation"],
                f"subset {name} is chosen by target {target}, an embedding model, which answers nothing: say which "
                "targets' models are trained (models: [...]), or leave the subset out (subsets: [...])",
            )
