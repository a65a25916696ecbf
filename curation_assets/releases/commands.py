"""The words, options and output of the commands on releases that are there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curation_assets.command import ConfigOption, clear_errors, console, load_workspace
from curation_assets.releases.formats import NAMES
from curation_assets.sections import unknown
from resources.errors import UserError

if TYPE_CHECKING:
    from curation_assets.workspace import Workspace
    from resources.storage import Storage

commands = typer.Typer()

ReleaseArgument = Annotated[
    str, typer.Argument(metavar="RELEASE", help="SUBSET (its last release), SUBSET@N, or the folder of a copy.")
]


class DamagedError(UserError):
    """A release is not as it says."""


@commands.command()
def verify(
    release: ReleaseArgument,
    config: ConfigOption = None,
) -> None:
    """Hold a release against what it says of itself: checksums, manifest, counts, both data files, images.

    Says what is wrong, file by file, and ends with an error; a release that is whole is said to be so. A folder needs
    no configuration: what was downloaded somewhere is verified there.
    """
    with clear_errors():
        from curation_assets.releases.verify import verify_release
        from curation_assets.terminal import simple_table

        storage, place = where(release, config)
        problems = verify_release(storage, place)
        if problems:
            rows = [(problem.file, problem.what) for problem in problems]
            console.print(simple_table(f"{storage.shown(place)}", ("file", "what is wrong"), rows))
            raise DamagedError(f"{storage.shown(place)} is not as it says: {len(problems)} problems")
        console.print(f"{storage.shown(place)} is whole", soft_wrap=True)


@commands.command()
def export(
    release: ReleaseArgument,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help=f"{', '.join(NAMES)}.",
        ),
    ],
    to: Annotated[Path, typer.Option(help="A folder that is not there yet.")],
    step_threshold: Annotated[
        float, typer.Option(help="Steps that score below it are labelled bad, masked, or weigh 0.")
    ] = 0.0,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Leave out rows that the format cannot hold, and say how many.")
    ] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="With --format weights: a weight for each token of this tokenizer.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Write a release in the form that a trainer reads.

    messages, prompt-completion (TRL), sharegpt and alpaca (LLaMA-Factory), axolotl (low-scored steps masked), stepwise
    (process reward models), verl (reinforcement learning), weights (loss weights as columns), datasets.
    """
    with clear_errors():
        from curation_assets.releases.export import export_release

        storage, place = where(release, config)
        made = export_release(
            storage, place, form, to, threshold=step_threshold, leave_out=leave_out, tokenizer=tokenizer
        )
        console.print(f"wrote {made.rows:,} rows to {made.folder}; not said in this form: {made.loses}", soft_wrap=True)
        for reason, count in made.left_out.items():
            console.print(f"left out {count:,} rows: {reason}", style="yellow", soft_wrap=True)


def where(release: str, config: Path | None) -> tuple[Storage, str]:
    """The storage of a release and its folder there: of a copy, or of a release in the warehouse.

    Raises:
        DamagedError: it is no folder, and there is no such subset or release.
    """
    from resources.storage import FolderStorage

    folder = Path(release)
    if folder.is_dir():
        return FolderStorage(folder.resolve().parent), folder.resolve().name
    workspace = load_workspace(config)
    return workspace.warehouse.storage, _place(workspace, release)


def _place(workspace: Workspace, release: str) -> str:
    """The folder of a release in the warehouse.

    Raises:
        DamagedError: there is no such subset or release.
    """
    from curation_assets import tables
    from curation_assets.releases.build import release_numbers

    name, _, number = release.partition("@")
    subsets = {subset.name: subset for subset in workspace.settings.subsets}
    if name not in subsets:
        raise DamagedError(f"{release} is no folder, and {unknown('subset', name, subsets)}")
    numbers = release_numbers(workspace, subsets[name])
    if not numbers:
        raise DamagedError(f"subset {name} has no release yet: use `curate release {name}`")
    wanted = number or str(numbers[-1])
    if wanted not in map(str, numbers):
        raise DamagedError(f"there is no release {release}; there are {', '.join(f'{name}@{one}' for one in numbers)}")
    return f"{tables.release_dir(name)}/{wanted}"
