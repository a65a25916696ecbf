"""The words, options and output of the command that measures a share of what is due."""

from __future__ import annotations

from typing import Annotated

import typer

from curation_assets.cli.command import ConfigOption, clear_errors, console, end_as_interrupted, load_workspace

commands = typer.Typer()


@commands.command()
def score(
    units: Annotated[
        str, typer.Option(metavar="I/N", help="Which of how many even shares, as in 3/16; from 1/16 to 16/16.")
    ] = "1/1",
    config: ConfigOption = None,
) -> None:
    """Measure a share of what is due: for a Slurm array, or any other way of starting many processes.

    First `curate run --until checkpoints`, once; then this, in as many processes as you like, each with another I; then
    `curate run`, once, which finds everything measured. Processes share the warehouse and nothing else. What is stored
    is never measured again: one that was killed or preempted is started again as it was.
    """
    end_as_interrupted()
    again = f"curate score --units {units}"
    with clear_errors(again):
        from curation_assets.operations.share import Share, measure_share
        from curation_resources.terminal import progress_bars

        share = Share.parse(units)
        with progress_bars(console):
            for done in measure_share(load_workspace(config), share):
                console.print(
                    f"{done.target}: share {units}: {done.measured:,} of {done.samples:,} samples measured "
                    f"({done.stored:,} were stored), {done.tokens:,} tokens",
                    soft_wrap=True,
                )
                if done.stopped is not None:
                    console.print(f"stopped at this share's part of {done.stopped}; `{again}` goes on", style="yellow")
