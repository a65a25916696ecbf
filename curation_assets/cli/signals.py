"""Arguments, help and output of `curate measure`, which measures a share of the outdated shards."""

from __future__ import annotations

from typing import Annotated

import typer

from curation_assets.cli.command import ConfigOption, clear_errors, console, end_as_interrupted, load_workspace

commands = typer.Typer()


# Its former name, which scripts of array jobs may use.
@commands.command("score", hidden=True)
@commands.command()
def measure(
    units: Annotated[
        str,
        typer.Option(metavar="I/N", help="Share to measure: I of N equal shares, such as 3/16; from 1/16 to 16/16."),
    ] = "1/1",
    config: ConfigOption = None,
) -> None:
    """Measure a share of the outdated shards, for a Slurm array or any other set of parallel processes.

    First run `curate run --until checkpoints` once; then this command in any number of processes, each with its own
    I; then `curate run` once, which finds everything measured. Processes share only the warehouse. Stored results
    are never measured again, so restart a killed or preempted process with the same command.
    """
    end_as_interrupted()
    again = f"curate measure --units {units}"
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
                    console.print(
                        f"stopped at this share's part of {done.stopped}; to continue: `{again}`", style="yellow"
                    )
