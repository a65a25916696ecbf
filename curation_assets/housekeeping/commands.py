"""The words, options and output of the housekeeping commands of `curate`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from curation_assets.command import ConfigOption, clear_errors, console, load_workspace
from resources.errors import UserError

if TYPE_CHECKING:
    from curation_assets.housekeeping.purge import Purged
    from curation_assets.workspace import Workspace

commands = typer.Typer()

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


class UnconfirmedError(UserError):
    """Something that cannot be undone was asked for, and nobody could be asked whether it is meant."""


def confirm(question: str, yes: bool) -> None:
    """Ask on a terminal.

    Raises:
        UnconfirmedError: the answer is no, or there is no terminal to ask on.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UnconfirmedError(f"{question} There is no terminal to ask on: say --yes if it is meant")
    if not typer.confirm(question):
        raise UnconfirmedError("nothing was changed")


def refuse_beside_a_run(workspace: Workspace, what: str) -> None:
    """Refuse while a run of the workspace's instance is in progress."""
    from curation_assets.dead_runs import refuse_while_running
    from curation_assets.instance import open_instance

    with open_instance(workspace) as instance:
        refuse_while_running(instance, what)


@commands.command()
def purge(
    sample_id: Annotated[str, typer.Argument(help="A sample_id, or at least its first 8 characters.")],
    reason: Annotated[str, typer.Option(help="Why, for the list of purged samples.")] = "",
    yes: YesOption = False,
    config: ConfigOption = None,
) -> None:
    """Take a sample out everywhere, for good: its rows, steps, measurements, scores and images.

    Its row is rejected from now on (reason: purged) whenever a file holds it. Releases and trained checkpoints never
    change: those that hold it are named. The next `curate run` makes anew what rests on the sample, without a model.
    """
    with clear_errors():
        from curation_assets.housekeeping.purge import find_sample
        from curation_assets.housekeeping.purge import purge as take_out
        from curation_assets.terminal import progress_bars

        workspace = load_workspace(config)
        refuse_beside_a_run(workspace, "nothing can be purged now")
        with progress_bars(console):
            found = find_sample(workspace, sample_id)
        confirm(f"Take sample {found} out of {workspace.warehouse.storage.place} for good?", yes)
        _show_purged(take_out(workspace, found, reason), workspace)


def _show_purged(done: Purged, workspace: Workspace) -> None:
    from curation_assets.terminal import harmless, simple_table

    rows = [(path, count) for path, count in sorted(done.tables.items())]
    rows += [(f"images/{name}", 1) for name in done.images]
    console.print(simple_table(f"{done.sample_id}: taken out of", ("what", "rows"), rows))
    held = [
        *(
            (f"release {name}", f"{folder}: delete the folder and tell who loaded it; `curate release` makes another")
            for name, folder in done.releases.items()
        ),
        *(
            (f"checkpoint {folder}", "it was trained on the sample: delete the folder to train it, and measure, anew")
            for folder in done.checkpoints
        ),
        *((f"file {harmless(name)}, row {row}", "take the row out of it") for name, row in done.files),
    ]
    if held:
        console.print(simple_table("still held by", ("what", "what to do"), held))
    console.print(f"next: curate run --config {workspace.config_file}", soft_wrap=True, markup=False)
