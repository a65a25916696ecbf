"""Arguments, help and output of the housekeeping commands of `curate`."""

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

YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]


class UnconfirmedError(UserError):
    """An irreversible action was requested but not confirmed."""


def confirm(question: str, yes: bool) -> None:
    """Ask for confirmation on a terminal.

    Raises:
        UnconfirmedError: the answer is no, or there is no terminal.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UnconfirmedError(f"{question} There is no terminal to ask on: pass --yes to confirm.")
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    older_than: Annotated[
        float, typer.Option(min=0, metavar="DAYS", help="Keep everything written in the last DAYS days.")
    ] = 7,
    yes: YesOption = False,
    config: ConfigOption = None,
) -> None:
    """Remove data that neither the configuration nor a release refers to, and leftovers of crashed writes.

    Covers measurements, checkpoints, scores, subsets, validation sets, images and temporary files. Rows, rejected
    rows and releases are never removed. Removed data has to be measured again if the configuration needs it later.
    """
    with clear_errors():
        from curation_assets.operations.gc import clear, find_unused
        from curation_resources.storage.landing import printable
        from curation_resources.text import size_text

        workspace = load_workspace(config)
        refuse_beside_a_run(workspace, "nothing can be removed now")
        finds = find_unused(workspace, older_than)
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
                console.print(
                    f"kept, because it was written to in the meantime: {printable(find.what)}", soft_wrap=True
                )
            console.print(f"removed {size_text(sum(find.size for find in removed if find not in changed))}")


def _show_finds(finds: Sequence[Find]) -> None:
    import time

    from curation_resources.terminal import simple_table
    from curation_resources.text import duration, size_text

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
    console.print(simple_table("garbage collection", ("what", "", "why", "size", "age"), rows))


@commands.command()
def purge(
    sample_id: Annotated[str, typer.Argument(help="A sample_id, or at least its first 8 characters.")],
    reason: Annotated[str, typer.Option(help="Reason, for the list of purged samples.")] = "",
    yes: YesOption = False,
    config: ConfigOption = None,
) -> None:
    """Remove a sample everywhere, permanently: its rows, steps, measurements, scores and images.

    From now on, a row with this sample is rejected (reason: purged) in any file. Releases and trained checkpoints
    never change; those that contain the sample are listed. The next `curate run` recomputes what depends on the
    sample, without a model.
    """
    with clear_errors():
        from curation_assets.operations.purge import find_sample
        from curation_assets.operations.purge import purge as take_out
        from curation_resources.terminal import progress_bars

        workspace = load_workspace(config)
        refuse_beside_a_run(workspace, "nothing can be purged now")
        with progress_bars(console):
            found = find_sample(workspace, sample_id)
        confirm(f"Remove sample {found} from {workspace.warehouse.storage.place} permanently?", yes)
        _show_purged(take_out(workspace, found, reason), workspace)


def _show_purged(done: Purged, workspace: Workspace) -> None:
    from curation_resources.storage.landing import printable
    from curation_resources.terminal import simple_table

    rows = [(path, count) for path, count in sorted(done.tables.items())]
    rows += [(f"images/{name}", 1) for name in done.images]
    rows += [("judge replies cached on this machine", done.replies)] if done.replies else []
    console.print(simple_table(f"{done.sample_id}: removed from", ("what", "rows"), rows))
    held = [
        *(
            (
                f"release {name}",
                f"{folder}: delete the folder and inform those who loaded it; `curate release` makes another",
            )
            for name, folder in done.releases.items()
        ),
        *(
            (f"checkpoint {folder}", "trained on the sample: delete the folder to train and measure again")
            for folder in done.checkpoints
        ),
        *((f"file {printable(name)}, row {row}", "remove the row from the file") for name, row in done.files),
    ]
    if held:
        console.print(simple_table("still contained in", ("what", "what to do"), held))
    console.print(f"next: curate run --config {workspace.config_file}", soft_wrap=True, markup=False)


@commands.command()
def export_measurements(
    dest: Annotated[str, typer.Argument(help="A folder, or s3://bucket/prefix; an existing export there is extended.")],
    target: Annotated[str | None, typer.Option(help="Export only this target.")] = None,
    config: ConfigOption = None,
) -> None:
    """Copy measurements, with the warm-ups they depend on, for another warehouse.

    `curate import-measurements` adds them there; with the same corpus and configuration, a run then measures
    nothing.
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
    source: Annotated[str, typer.Argument(help="Folder, or s3://bucket/prefix, of an export.")],
    config: ConfigOption = None,
) -> None:
    """Add measurements written by `curate export-measurements`; files are verified, and existing ones are never
    replaced."""
    with clear_errors():
        from curation_assets.operations.transfer import import_measurements as take_in
        from curation_resources.terminal import progress_bars

        workspace = load_workspace(config)
        with progress_bars(console):
            moved = take_in(workspace, source)
        _show_moved(f"imported from {source}", moved)
        if any(one.wanted is False for one in moved):
            console.print(
                "measurements that are not wanted here belong to another model, recipe or setting than the "
                "configuration's; they are kept, and used if the configuration needs them later",
                soft_wrap=True,
            )


def _show_moved(title: str, moved: Sequence[Moved]) -> None:
    from curation_resources.terminal import simple_table
    from curation_resources.text import size_text

    words = {True: "yes", False: "no", None: "model not available"}
    rows = [(one.folder, one.files, one.copied, size_text(one.size), words[one.wanted]) for one in moved]
    console.print(simple_table(title, ("what", "files", "new", "size", "wanted here"), rows))
