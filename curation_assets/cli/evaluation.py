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
        bool, typer.Option("--dry-run", help="Only list the runs and results that are missing or stored.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Measure whether selection helps: fine-tune models on the subsets, and evaluate them on held-out benchmarks.

    For every model, the base is fine-tuned on each subset, on baselines of the same size and on the full pool, once per
    seed. Each of these, and the untouched base, is tested on the benchmarks in `evaluation` of curation.yaml: by the
    share of right answers under greedy decoding (`metric: exact_match`), or by the loss of right responses
    (`metric: loss`), which needs no generation. With `equal_steps: true`, all arms take the same number of steps.

    The output begins with the spread between random draws, which is the yardstick. The results of each arm follow, with
    95 % intervals over seeds and the average relative to the full pool, and then the differences between arms, with
    intervals from a paired bootstrap over problems. Differences within the spread are marked.

    This takes long: `--dry-run` shows the number of remaining runs. Results are stored as soon as a benchmark is done,
    so an interrupted evaluation repeats none of them; weights are deleted. Afterwards, use `curate table
    post_training_eval`, `post_training_spread`, `post_training_differences`, `post_training_answers` and
    `post_training_losses`.
    """
    with clear_errors("curate evaluate"):
        from curation_assets.evaluation.benchmarks import prompts_in_corpus
        from curation_assets.evaluation.rendering import show_evaluation, show_left_out, show_overlap, show_plan
        from curation_assets.evaluation.runs import plan_evaluation

        workspace = load_workspace(config)
        numbers = _numbers(seeds)
        # Report configuration errors before Dagster starts.
        plan = plan_evaluation(workspace, numbers, subset)
        show_overlap(prompts_in_corpus(workspace, plan.benchmarks), console)
        show_left_out(plan.benchmarks, console)
        if dry_run:
            show_plan(plan, console)
            return

        from curation_assets.defs.instance import open_instance
        from curation_assets.defs.main_job import MainJob
        from curation_assets.evaluation.summary import stored_results
        from curation_resources.terminal import progress_bars

        with open_instance(workspace) as instance, progress_bars(console) as progress:
            job = MainJob(workspace, instance, lambda line: progress.console.print(line, style="dim"))
            job.evaluate(numbers, subset or [])
        show_evaluation(stored_results(workspace), console)


def _numbers(text: str | None) -> list[int]:
    """Parse the list of seeds.

    Raises:
        UserError: it is not a list of integers.
    """
    try:
        return [] if text is None else [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds {text}: not a list of whole numbers. Use the form --seeds 0,1,2.") from error
