"""What a run and its answers depend on, as one hash each: change any of it and it is trained, or asked, anew."""

from __future__ import annotations

from dataclasses import replace

from curation_assets.config.evaluation_settings import Evaluation
from curation_assets.evaluation.arms import Run
from curation_assets.evaluation.benchmarks import Problems
from curation_assets.tables.evaluation import answers_dir
from curation_assets.workspace.fingerprints import base_digest
from curation_assets.workspace.workspace import Workspace
from curation_resources.models.model_files import processor_digest, tokenizer_digest
from curation_resources.storage.digests import digest
from curation_resources.training.recipe import Recipe
from curation_resources.training.trainer import TRAINER_VERSION

EVALUATION_VERSION = 1
"""Raise it when generation, or what counts as right, changes."""


def recipe_of_run(run: Run, evaluation: Evaluation) -> Recipe | None:
    """The recipe of a run, its seed included; None of the untouched base."""
    return None if run.seed is None else replace(evaluation.training.recipe(), seed=run.seed)


def run_key(workspace: Workspace, run: Run, evaluation: Evaluation) -> str:
    """Of the model that a run comes to: base, encoding, recipe with its seed, samples. Names do not count."""
    target = workspace.settings.target(run.model)
    folder = workspace.model_folder(target)
    encoding = [target.template, target.max_length, target.dtype]
    files = [tokenizer_digest(folder, workspace.cache), processor_digest(folder, workspace.cache)]
    recipe = recipe_of_run(run, evaluation)
    trained = None if recipe is None else [TRAINER_VERSION, vars(recipe), list(run.sample_ids)]
    return digest("post_training", base_digest(workspace, target), files, encoding, trained)


def answers_path(run: str, problems: Problems, evaluation: Evaluation) -> str:
    """Where the answers of a run to a benchmark lie: by run, content of the benchmark, and settings of generation."""
    asked = digest("answers", EVALUATION_VERSION, problems.digest, evaluation.max_new_tokens)
    return f"{answers_dir()}/{run}-{asked}.parquet"
