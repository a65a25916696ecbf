"""The words, options and output of the commands on releases that are there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curation_assets.command import ConfigOption, clear_errors, console, load_workspace
from curation_assets.sections import unknown
from resources.errors import UserError

if TYPE_CHECKING:
    from curation_assets.workspace import Workspace
    from resources.storage import Storage

commands = typer.Typer()


class DamagedError(UserError):
    """A release is not as it says."""


@commands.command()
def verify(
    release: Annotated[
        str,
        typer.Argument(metavar="RELEASE", help="SUBSET (its last release), SUBSET@N, or the folder of a copy."),
    ],
    config: ConfigOption = None,
) -> None:
    """Hold a release against what it says of itself: checksums, manifest, counts, both data files, images.

    Says what is wrong, file by file, and ends with an error; a release that is whole is said to be so. A folder needs
    no configuration: what was downloaded somewhere is verified there.
    """
    with clear_errors():
        from curation_assets.releases.verify import verify_release
        from curation_assets.terminal import simple_table
        from resources.storage import FolderStorage

        folder = Path(release)
        if folder.is_dir():
            storage: Storage = FolderStorage(folder.resolve().parent)
            place = folder.resolve().name
        else:
            workspace = load_workspace(config)
            storage, place = workspace.warehouse.storage, _place(workspace, release)
        problems = verify_release(storage, place)
        if problems:
            rows = [(problem.file, problem.what) for problem in problems]
            console.print(simple_table(f"{storage.shown(place)}", ("file", "what is wrong"), rows))
            raise DamagedError(f"{storage.shown(place)} is not as it says: {len(problems)} problems")
        console.print(f"{storage.shown(place)} is whole", soft_wrap=True)


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
