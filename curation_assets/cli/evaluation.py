"""Arguments, help and output of `curate evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from curation_assets.cli.command import ConfigOption, clear_errors, console, load_workspace
from curation_resources.errors import UserError

commands = typer.Typer()


@commands.command()
def evaluate(
    seeds: Annotated[
        str | None, typer.Option(help="Seeds of the fine-tuning runs, such as 0,1,2, instead of evaluation.seeds.")
    ] = None,
    subset: Annotated[
        list[str] | None,
        typer.Option("--subset", help="Evaluate only this subset, instead of evaluation.subsets. Repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the runs and answers that are missing or stored.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Measure whether selection helps: fine-tune models on the subsets, and evaluate them on held-out benchmarks.

    For every model, the base is fine-tuned on each subset, on baselines of the same size and on the full pool, once per
    seed. Each of these, and the untouched base, answers the benchmarks in `evaluation` of curation.yaml with greedy
    decoding. The output shows exact match with 95 % intervals over seeds, and the average relative to the full pool.

    This takes long: `--dry-run` shows the number of remaining runs. Each run is stored once it has answered, so an
    interrupted evaluation repeats none of them; its weights are deleted. Afterwards, use `curate table
    post_training_eval` and `curate table post_training_answers`.
    """
    with clear_errors("curate evaluate"):
        from curation_assets.evaluation.benchmarks import prompts_in_corpus
        from curation_assets.evaluation.rendering import show_evaluation, show_overlap, show_plan
        from curation_assets.evaluation.runs import plan_evaluation

        workspace = load_workspace(config)
        numbers = _numbers(seeds)
        # Report configuration errors before Dagster starts.
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
    """Parse the list of seeds.

    Raises:
        UserError: it is not a list of integers.
    """
    try:
        return [] if text is None else [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds {text}: not a list of whole numbers. Use the form --seeds 0,1,2.") from error
