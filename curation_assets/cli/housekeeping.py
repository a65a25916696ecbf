"""The words, options and output of the housekeeping commands of `curate`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from curation_assets.cli.command import ConfigOption, clear_errors, console, load_workspace
from curation_resources.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from curation_assets.operations.gc import Find
    from curation_assets.operations.purge import Purged
    from curation_assets.operations.transfer import Moved
    from curation_assets.workspace.workspace import Workspace

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
    from curation_assets.defs.dead_runs import refuse_while_running
    from curation_assets.defs.instance import open_instance

    with open_instance(workspace) as instance:
        refuse_while_running(instance, what)


@commands.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    older_than: Annotated[
        float, typer.Option(min=0, metavar="DAYS", help="What was written in the last so many days stays.")
    ] = 7,
    yes: YesOption = False,
    config: ConfigOption = None,
) -> None:
    """Clear away what neither the configuration nor any release names, and what writes that died left behind.

    Looks at measurements, checkpoints, scores, subsets, validation sets, images and temporary files. Rows, rejected
    rows and releases are never removed. What is removed has to be measured again if the configuration wants it again.
    """
    with clear_errors():
        from curation_assets.cli.show_cost import size_text
        from curation_assets.operations.gc import clear, look
        from curation_resources.storage.landing import printable

        workspace = load_workspace(config)
        refuse_beside_a_run(workspace, "nothing can be cleared away now")
        finds = look(workspace, older_than)
        _show_finds(finds)
        removed = [find for find in finds if find.remove]
        size = size_text(sum(find.size for find in removed))
        if not removed:
            console.print("nothing to remove")
        elif dry_run:
            console.print(f"{size} would be removed")
        else:
            confirm(f"Remove {size} from {workspace.warehouse.storage.place} for good?", yes)
            changed = clear(workspace, finds)
            for find in changed:
                console.print(f"kept after all, written to meanwhile: {printable(find.what)}", soft_wrap=True)
            console.print(f"removed {size_text(sum(find.size for find in removed if find not in changed))}")


def _show_finds(finds: Sequence[Find]) -> None:
    import time

    from curation_assets.cli.show_cost import duration, size_text
    from curation_resources.terminal import simple_table

    now = time.time()
    rows = [
        (
            find.what,
            "remove" if find.remove else "keep",
            find.why,
            size_text(find.size),
            duration(max(0.0, now - find.modified)),
        )
        for find in sorted(finds, key=lambda find: (find.remove, find.what))
    ]
    console.print(simple_table("what is cleared away", ("what", "", "why", "size", "age"), rows))


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
        from curation_assets.operations.purge import find_sample
        from curation_assets.operations.purge import purge as take_out
        from curation_resources.terminal import progress_bars

        workspace = load_workspace(config)
        refuse_beside_a_run(workspace, "nothing can be purged now")
        with progress_bars(console):
            found = find_sample(workspace, sample_id)
        confirm(f"Take sample {found} out of {workspace.warehouse.storage.place} for good?", yes)
        _show_purged(take_out(workspace, found, reason), workspace)


def _show_purged(done: Purged, workspace: Workspace) -> None:
    from curation_resources.storage.landing import printable
    from curation_resources.terminal import simple_table

    rows = [(path, count) for path, count in sorted(done.tables.items())]
    rows += [(f"images/{name}", 1) for name in done.images]
    rows += [("replies of judges, kept on this machine", done.replies)] if done.replies else []
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
        *((f"file {printable(name)}, row {row}", "take the row out of it") for name, row in done.files),
    ]
    if held:
        console.print(simple_table("still held by", ("what", "what to do"), held))
    console.print(f"next: curate run --config {workspace.config_file}", soft_wrap=True, markup=False)


@commands.command()
def export_measurements(
    dest: Annotated[str, typer.Argument(help="A folder, or s3://bucket/prefix; an export in it is added to.")],
    target: Annotated[str | None, typer.Option(help="Of this target only.")] = None,
    config: ConfigOption = None,
) -> None:
    """Copy what is measured, with the warm-ups it rests on, for another warehouse.

    There, `curate import-measurements` takes it in, and with the same corpus and configuration a run measures nothing.
    """
    with clear_errors():
        from curation_assets.operations.transfer import export_measurements as export
        from curation_resources.terminal import progress_bars

        workspace = load_workspace(config)
        with progress_bars(console):
            moved = export(workspace, dest, target)
        _show_moved(f"exported to {dest}", moved)


@commands.command()
def import_measurements(
    source: Annotated[str, typer.Argument(help="The folder, or s3://bucket/prefix, of an export.")],
    config: ConfigOption = None,
) -> None:
    """Add measurements that `curate export-measurements` wrote; each file is checked, and none is ever replaced."""
    with clear_errors():
        from curation_assets.operations.transfer import import_measurements as take_in
        from curation_resources.terminal import progress_bars

        workspace = load_workspace(config)
        with progress_bars(console):
            moved = take_in(workspace, source)
        _show_moved(f"imported from {source}", moved)
        if any(one.wanted is False for one in moved):
            console.print(
                "what is not wanted is of another model, recipe or setting than the configuration's: it is kept, and "
                "used if the configuration comes to want it",
                soft_wrap=True,
            )


def _show_moved(title: str, moved: Sequence[Moved]) -> None:
    from curation_assets.cli.show_cost import size_text
    from curation_resources.terminal import simple_table

    words = {True: "yes", False: "no", None: "the model is not here"}
    rows = [(one.folder, one.files, one.copied, size_text(one.size), words[one.wanted]) for one in moved]
    console.print(simple_table(title, ("what", "files", "new", "size", "wanted here"), rows))
