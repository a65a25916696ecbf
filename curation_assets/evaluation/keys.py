"""Keys of runs and answers: one hash each over everything they depend on; a changed key means a new run or new
answers."""

from __future__ import annotations

from dataclasses import replace

from curation_assets.config.evaluation_settings import Evaluation
from curation_assets.evaluation.arms import Run
from curation_assets.evaluation.benchmarks import Problems
from curation_assets.tables.evaluation import answers_dir, losses_dir
from curation_assets.workspace.fingerprints import base_digest
from curation_assets.workspace.workspace import Workspace
from curation_resources.models.model_files import processor_digest, tokenizer_digest
from curation_resources.storage.digests import digest
from curation_resources.training.files import TRAINER_VERSION
from curation_resources.training.recipe import Recipe

EVALUATION_VERSION = 1
"""Increase it when generation or matching changes."""

LOSS_VERSION = 1
"""Increase it when the loss changes."""


def recipe_of_run(run: Run, evaluation: Evaluation) -> Recipe | None:
    """Return the recipe of a run, including its seed; None for the untouched base.

    A run with a number of steps repeats its samples as often as they take.
    """
    if run.seed is None:
        return None
    recipe = replace(evaluation.training.recipe(), seed=run.seed)
    # An epoch has at least one step, even if the trainer leaves samples out: no run ends before its last step.
    return recipe if run.steps is None else replace(recipe, epochs=run.steps, max_steps=run.steps)


def run_key(workspace: Workspace, run: Run, evaluation: Evaluation) -> str:
    """Return the key of a run's model: base, encoding, recipe with seed, and samples, but no names."""
    target = workspace.settings.target(run.model)
    folder = workspace.model_folder(target)
    encoding = [target.template, target.max_length, target.dtype]
    files = [tokenizer_digest(folder, workspace.cache), processor_digest(folder, workspace.cache)]
    recipe = recipe_of_run(run, evaluation)
    trained = None if recipe is None else [TRAINER_VERSION, recipe.facts(), list(run.sample_ids)]
    return digest("post_training", base_digest(workspace, target), files, encoding, trained)


def results_path(run: str, problems: Problems, evaluation: Evaluation) -> str:
    """Return the path of a run's results on a benchmark, by run and benchmark content.

    Those of metric `exact_match` are answers, which depend on the generation settings as well; those of `loss` are
    losses.
    """
    if problems.metric == "loss":
        return f"{losses_dir()}/{run}-{digest('losses', LOSS_VERSION, problems.digest)}.parquet"
    asked = digest("answers", EVALUATION_VERSION, problems.digest, evaluation.max_new_tokens)
    return f"{answers_dir()}/{run}-{asked}.parquet"
