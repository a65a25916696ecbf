"""The words, options and output of `curate evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from curation_assets.cli.command import ConfigOption, clear_errors, console, load_workspace
from curation_resources.errors import UserError

commands = typer.Typer()


@commands.command()
def evaluate(
    seeds: Annotated[
        str | None, typer.Option(help="Seeds of the fine-tuning runs, as in 0,1,2, in place of evaluation.seeds.")
    ] = None,
    subset: Annotated[
        list[str] | None, typer.Option("--subset", help="Only this subset, in place of evaluation.subsets. Repeatable.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be trained and asked, and what is stored.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Does the choice help? Fine-tune models on what was chosen, and ask them what was held out.

    Of every model: the base is fine-tuned on each subset, on baselines of the same size and on the full pool, once with
    every seed; each of these, and the untouched base, answers the benchmarks of `evaluation` in curation.yaml, always
    taking the likeliest token. Shown is exact match with 95 % intervals over seeds, and the average relative to the
    full pool.

    This takes long: `--dry-run` says how many runs are left. Each run is stored once it has answered, and neither made
    again nor lost when the evaluation is interrupted; its weights are deleted. Afterwards: `curate table
    post_training_eval`, `curate table post_training_answers`.
    """
    with clear_errors("curate evaluate"):
        from curation_assets.evaluation.benchmarks import prompts_in_corpus
        from curation_assets.evaluation.rendering import show_evaluation, show_overlap, show_plan
        from curation_assets.evaluation.runs import plan_evaluation

        workspace = load_workspace(config)
        numbers = _numbers(seeds)
        # Refused before Dagster is started.
        plan = plan_evaluation(workspace, numbers, subset)
        show_overlap(prompts_in_corpus(workspace, plan.benchmarks), console)
        if dry_run:
            show_plan(plan, console)
            return

        from curation_assets.defs.instance import open_instance
        from curation_assets.defs.main_job import MainJob
        from curation_assets.tables.evaluation import post_training_eval_path
        from curation_resources.terminal import progress_bars

        with open_instance(workspace) as instance, progress_bars(console) as progress:
            job = MainJob(workspace, instance, lambda line: progress.console.print(line, style="dim"))
            job.evaluate(numbers, subset or [])
        show_evaluation(workspace.warehouse.read_table(post_training_eval_path()), console)


def _numbers(text: str | None) -> list[int]:
    """The seeds in a text.

    Raises:
        UserError: it is no list of numbers.
    """
    try:
        return [] if text is None else [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds {text}: give whole numbers, as in --seeds 0,1,2") from error
