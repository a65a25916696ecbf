"""Train and evaluate the runs of an evaluation, one after another, each distinct run once.

Weights are temporary: they are kept in a local work folder, and deleted once all answers of a run are stored.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pvariance
from typing import TYPE_CHECKING, Any

import polars as pl

from curation_assets.config.evaluation_settings import Evaluation
from curation_assets.config.settings import Target
from curation_assets.corpus.ingest import corpus_rows
from curation_assets.corpus.samples import samples_of
from curation_assets.evaluation.arms import Run, configured_evaluation, runs_of
from curation_assets.evaluation.benchmarks import EvaluationError, Problems, read_benchmark
from curation_assets.evaluation.keys import recipe_of_run, results_path, run_key
from curation_assets.evaluation.losses import measure_losses, responses_of
from curation_assets.signals.scorers import MIB
from curation_assets.signals.warmup import alone
from curation_assets.steps.correctness import judged
from curation_assets.tables.evaluation import POST_TRAINING_ANSWERS
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError
from curation_resources.models.generation import Generator
from curation_resources.progress import track
from curation_resources.quiet import quieten_transformers
from curation_resources.scoring.spec import PassSpec
from curation_resources.storage.digests import atomic_write
from curation_resources.training.examples import steps_of
from curation_resources.training.trainer import TrainingRecord, TrainingSpec, train

if TYPE_CHECKING:
    from curation_resources.scoring.forward import ForwardPass

TRAINED = "trained.json"
"""Written beside the complete weights: a run killed after that only has to answer."""
STABILITY = ("loss_variance", "gradient_norm", "largest_gradient_norm")
"""Stability of a run, which the claims on gradient spectra are about (arXiv 2504.10766)."""

NOTHING_TRAINED = {"samples": 0, "steps": 0, "tokens": 0, "loss": None, **dict.fromkeys(STABILITY)}

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Plan:
    """The runs and benchmarks of an evaluation.

    Attributes:
        evaluation: the settings, with the requested changes.
        runs: all runs with their keys.
        benchmarks: content of the benchmarks, once for each of their metrics.
        lacking: by key, the benchmarks without stored results; each run once.
    """

    evaluation: Evaluation
    runs: Sequence[tuple[Run, str]]
    benchmarks: Sequence[Problems]
    lacking: dict[str, list[Problems]]

    def due(self) -> list[tuple[Run, str]]:
        """Return the runs that are still to be done, each once."""
        first = {key: run for run, key in reversed(self.runs)}
        return [(first[key], key) for key in self.lacking]


def plan_evaluation(
    workspace: Workspace, seeds: Sequence[int] | None = None, subsets: Sequence[str] | None = None
) -> Plan:
    """Return the runs and results of an evaluation, and which are missing, without loading a model.

    Args:
        workspace: the configuration.
        seeds: seeds that replace the configured ones.
        subsets: subsets that replace the configured ones.

    Raises:
        EvaluationError: something is missing; the message names the fix.
    """
    evaluation = configured_evaluation(workspace, seeds, subsets)
    benchmarks = [one for benchmark in evaluation.benchmarks for one in read_benchmark(workspace, benchmark)]
    runs = [(run, run_key(workspace, run, evaluation)) for run in runs_of(workspace, evaluation)]
    lacking = {}
    for _, key in runs:
        found = _without_results(workspace, key, benchmarks, evaluation)
        if found:
            lacking[key] = found
    workspace.cache.save()
    return Plan(evaluation, runs, benchmarks, lacking)


def _without_results(
    workspace: Workspace, key: str, benchmarks: Sequence[Problems], evaluation: Evaluation
) -> list[Problems]:
    paths = [results_path(key, problems, evaluation) for problems in benchmarks]
    stored = [workspace.warehouse.table_metadata(path).get("fingerprint") for path in paths]
    return [problems for problems, run in zip(benchmarks, stored, strict=True) if run != key]


def make_runs(workspace: Workspace, plan: Plan) -> None:
    """Train and evaluate the missing runs; stored work is not repeated after a kill.

    Raises:
        EvaluationError: a run cannot be trained, or its model cannot answer; earlier work is kept.
    """
    due = plan.due()
    if not due:
        return
    steps = sum(_steps(run, plan.evaluation) for run, _ in due)
    lacking = [problems for found in plan.lacking.values() for problems in found]
    asked = sum(len(problems.items) for problems in lacking if problems.metric == "exact_match")
    held = sum(responses_of(problems) for problems in lacking if problems.metric == "loss")
    with ExitStack() as bars:
        train_on = bars.enter_context(track("fine-tuning, steps", steps))
        answer_on = bars.enter_context(track("answering, problems", asked)) if asked else _ignore_progress
        measure_on = bars.enter_context(track("measuring losses, responses", held)) if held else _ignore_progress
        for run, key in due:
            left = [_steps(run, plan.evaluation)]

            def step(count: int, left: list[int] = left) -> None:
                count = min(count, left[0])
                left[0] -= count
                train_on(count)

            try:
                _make_run(workspace, run, key, plan, step, answer_on, measure_on)
            except UserError as error:
                raise EvaluationError(f"evaluation of {run.title}: {error}") from error
            # Covers runs finished by another process, and samples that could not be used.
            train_on(left[0])


def _ignore_progress(_count: int) -> None:
    """Ignore progress."""


def _steps(run: Run, evaluation: Evaluation) -> int:
    recipe = recipe_of_run(run, evaluation)
    return 0 if recipe is None else steps_of(len(run.sample_ids), recipe)


def _make_run(
    workspace: Workspace, run: Run, key: str, plan: Plan, step: Advance, answered: Advance, measured: Advance
) -> None:
    """Train one run and store its results; delete its weights afterwards."""
    work = workspace.work_folder(f"evaluation-{key}")
    with alone(work):
        lacking = _without_results(workspace, key, plan.benchmarks, plan.evaluation)
        if lacking:
            facts, weights = _trained(workspace, run, plan.evaluation, work, step)
            scoring = _loaded(workspace, run, plan.evaluation, weights)
            metadata = {"fingerprint": key, "facts": json.dumps(facts)}
            for problems in lacking:
                if problems.metric == "loss":
                    frame = measure_losses(scoring, problems, key, measured)
                else:
                    frame = _answers(scoring, problems, key, plan.evaluation, answered)
                workspace.warehouse.write_table(results_path(key, problems, plan.evaluation), frame, metadata)
        shutil.rmtree(work, ignore_errors=True)


def _trained(
    workspace: Workspace, run: Run, evaluation: Evaluation, work: Path, step: Advance
) -> tuple[dict[str, Any], Path | None]:
    """Return facts about the training, and the folder of the weights; None for the untouched base."""
    recipe = recipe_of_run(run, evaluation)
    if recipe is None:
        return NOTHING_TRAINED, None
    weights, note = work / "weights", work / TRAINED
    if note.is_file():
        facts: dict[str, Any] = json.loads(note.read_text())
        return facts, weights
    # Remove an incomplete write left by a kill.
    shutil.rmtree(weights, ignore_errors=True)
    samples = samples_of(workspace, corpus_rows(workspace, list(run.sample_ids)))
    spec = _training_spec(workspace, workspace.settings.target(run.model))
    record = train(spec, samples, weights, recipe, work=work / "training", progress=step)
    facts = {"samples": len(record.sample_ids), "steps": record.steps, "tokens": record.tokens}
    facts["loss"] = record.losses[-1] if record.losses else None
    facts |= stability(record)
    atomic_write(note, json.dumps(facts).encode())
    return facts, weights


def stability(record: TrainingRecord) -> dict[str, float | None]:
    """Return the variance of a run's losses over its steps, and the mean and maximum of its gradient norms."""
    if not record.losses:
        return dict.fromkeys(STABILITY)
    norms = record.gradient_norms
    return dict(zip(STABILITY, (pvariance(record.losses), fmean(norms), max(norms)), strict=True))


def _training_spec(workspace: Workspace, target: Target) -> TrainingSpec:
    return TrainingSpec(
        workspace.model_folder(target),
        target.template,
        target.max_length,
        device=workspace.settings.engine.one_device,
        dtype=target.dtype,
        trust_remote_code=target.trust_remote_code,
    )


def _loaded(workspace: Workspace, run: Run, evaluation: Evaluation, weights: Path | None) -> ForwardPass:
    """Load a run's model, as the pool is measured."""
    quieten_transformers()
    from curation_resources.scoring.devices import make_pass  # noqa: PLC0415

    target, engine = workspace.settings.target(run.model), workspace.settings.engine
    base, adapted = workspace.model_folder(target), evaluation.training.recipe().adapter == "lora"
    spec = PassSpec(
        base if weights is None or adapted else weights,
        weights if adapted else None,
        dtype=target.dtype,
        template=target.template,
        max_length=target.max_length,
        trust_remote_code=target.trust_remote_code,
        batch_tokens=engine.batch_tokens,
        head_memory=None if engine.head_memory_mib is None else engine.head_memory_mib * MIB,
        attention=engine.attention,
    )
    return make_pass(spec, engine.one_device)


def _answers(
    scoring: ForwardPass, problems: Problems, run: str, evaluation: Evaluation, answered: Advance
) -> pl.DataFrame:
    """Return table `post_training_answers` of one run and benchmark, with newly generated answers."""
    generator = Generator(scoring.checkpoint, scoring.encoder, evaluation.max_new_tokens, evaluation.batch_tokens)
    made = generator.generate([item.turns for item in problems.items], answered)
    rows = []
    for item, generated in zip(problems.items, made, strict=True):
        answer, right = judged(generated.text, item.reference)
        rows.append(
            {
                "run": run,
                "benchmark": problems.name,
                "item": item.row,
                "text": generated.text,
                "answer": answer,
                "reference": item.reference,
                "right": right,
                "finished": generated.finished,
                "flag": generated.flag,
            }
        )
    return POST_TRAINING_ANSWERS.conform(pl.DataFrame(rows, schema=POST_TRAINING_ANSWERS.schema))
