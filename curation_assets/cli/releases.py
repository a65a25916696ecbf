"""Arguments, help and output of the commands for existing releases."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curation_assets.cli.command import ConfigOption, clear_errors, console, load_workspace
from curation_assets.releases.formats import NAMES
from curation_resources.errors import UserError
from curation_resources.sections import unknown

if TYPE_CHECKING:
    from curation_assets.workspace.workspace import Workspace
    from curation_resources.storage.files import Storage

commands = typer.Typer()

ReleaseArgument = Annotated[
    str, typer.Argument(metavar="RELEASE", help="SUBSET (its latest release), SUBSET@N, or the folder of a copy.")
]


SHOWN_ROWS = 10


class DamagedError(UserError):
    """A release does not match its manifest, or cannot be found."""


@commands.command()
def verify(
    release: ReleaseArgument,
    config: ConfigOption = None,
) -> None:
    """Verify a release: checksums, manifest, counts, both data files, images.

    Prints the problems file by file and exits with an error, or confirms that the release is intact. A folder needs
    no configuration, so a downloaded copy can be verified anywhere.
    """
    with clear_errors():
        from curation_assets.releases.verify import verify_release
        from curation_resources.terminal import simple_table

        storage, place = where(release, config)
        problems = verify_release(storage, place)
        if problems:
            rows = [(problem.file, problem.what) for problem in problems]
            console.print(simple_table(f"{storage.shown(place)}", ("file", "problem"), rows))
            raise DamagedError(
                f"{storage.shown(place)} is damaged. Restore it from a copy, or delete it and release again."
            )
        console.print(f"{storage.shown(place)} is intact", soft_wrap=True)


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
    to: Annotated[Path, typer.Option(help="Folder to create.")],
    step_threshold: Annotated[
        float | None,
        typer.Option(
            help="Steps with a lower score are labelled bad, masked, or given weight 0. Default: 0; stepwise and "
            "axolotl refuse the default if it labels all steps alike."
        ),
    ] = None,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Skip rows that the format cannot represent, and report their number.")
    ] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="With --format weights: write one weight per token of this tokenizer.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Write a release in a trainer's format.

    messages, prompt-completion (TRL), sharegpt and alpaca (LLaMA-Factory), axolotl (low-scored steps masked),
    stepwise (process reward models), verl (reinforcement learning), weights (loss weights as columns), datasets.
    """
    with clear_errors():
        from curation_assets.releases.export import export_release
        from curation_assets.releases.ground_truth import corpus_siblings

        storage, place = where(release, config)
        made = export_release(
            storage,
            place,
            form,
            to,
            threshold=step_threshold,
            leave_out=leave_out,
            tokenizer=tokenizer,
            siblings=None if Path(release).is_dir() else partial(corpus_siblings, load_workspace(config)),
        )
        console.print(
            f"wrote {made.rows:,} rows to {made.folder}; not included in this format: {made.loses}", soft_wrap=True
        )
        for note in made.notes:
            console.print(note, highlight=False, soft_wrap=True)
        for reason, count in made.left_out.items():
            console.print(f"skipped {count:,} rows: {reason}", style="yellow", soft_wrap=True)


@commands.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="A release: SUBSET@N, or the folder of a copy.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Another release.")],
    config: ConfigOption = None,
) -> None:
    """Compare release B with release A: rows added, removed and moved, score drift, settings, versions.

    `curate report A B` shows the traces.
    """
    with clear_errors():
        from curation_assets.releases.changes import changed_settings, changes_of, changes_text, funnels
        from curation_assets.releases.export import release_frame
        from curation_resources.terminal import simple_table

        (old, was), (new, now) = (release_frame(*where(name, config)) for name in (before, after))
        same = was["parameters"]["score"] == now["parameters"]["score"]
        changes = changes_of(old, new, same)
        names = [f"{manifest['subset']}@{manifest['number']}" for manifest in (was, now)]
        rows = [(name.replace("_", " "), value) for name, value in changes.facts().items()]
        console.print(simple_table(f"{names[0]} -> {names[1]}", ("what", "value"), rows))
        stages = funnels(was, now)
        if stages:
            console.print(simple_table("samples left by each stage", ("stage", *names), stages))
        for title, one, other in (("rows added", new, old), ("rows removed", old, new)):
            moved = one.join(other, on="sample_id", how="anti").sort("rank").head(SHOWN_ROWS)
            if len(moved):
                shown = moved.select("sample_id", "rank", "score", "source").iter_rows()
                console.print(simple_table(f"{title}, best first", ("sample_id", "rank", "score", "source"), shown))
        settings = changed_settings(was, now)
        if settings:
            console.print(simple_table("settings that differ", ("what", names[0], names[1]), settings))
        console.print(changes_text(changes.facts()), soft_wrap=True, highlight=False)


@commands.command()
def reproduce(
    release: Annotated[str, typer.Argument(metavar="RELEASE", help="SUBSET (its latest release) or SUBSET@N.")],
    settings_to: Annotated[
        Path | None, typer.Option(help="Only write the configuration of the release to this file.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Recompute a release's rows from stored measurements with its own settings, and compare the bytes.

    Files that arrived later are ignored, and nothing is stored. Exits with an error and shows what changed if the
    bytes differ.
    """
    with clear_errors():
        from curation_assets.releases.build import read_manifest
        from curation_assets.releases.changes import changes_text
        from curation_assets.releases.reproduce import reproduce as make_again
        from curation_assets.releases.reproduce import write_settings

        workspace = load_workspace(config)
        place = _place(workspace, release)
        manifest = read_manifest(workspace.warehouse, place)
        if settings_to is not None:
            write_settings(manifest, settings_to, workspace.folder)
            console.print(f"wrote the configuration of {release} to {settings_to}", soft_wrap=True)
            return
        found = make_again(workspace, manifest, place)
        for name, same in found.files.items():
            console.print(f"{name}: {'identical' if same else 'DIFFERENT'}", highlight=False)
        for line in found.differs:
            console.print(line, style="yellow", soft_wrap=True, markup=False)
        if not found.identical:
            assert found.changes is not None
            raise DamagedError(f"{found.release} was not reproduced: {changes_text(found.changes.facts())}")
        if found.damaged:
            raise DamagedError(
                f"{found.release} can be reproduced, but its stored files are damaged: {found.damaged[0]}"
            )
        console.print(f"{found.release} is reproduced")


@commands.command()
def push(
    release: ReleaseArgument,
    to: Annotated[
        str, typer.Argument(metavar="WHERE", help="hf://datasets/OWNER/NAME, s3://BUCKET/PREFIX, or a folder.")
    ],
    go: Annotated[bool, typer.Option("--go", help="Push; without this flag, only show what would be pushed.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Create a new hub repository as public.")] = False,
    config: ConfigOption = None,
) -> None:
    """Push a verified release to a dataset hub, a bucket or a folder.

    Shows what would be pushed; --go pushes it. A hub repository then contains exactly this release, as one commit
    tagged with its name; HF_TOKEN authenticates.
    """
    with clear_errors():
        from curation_assets.releases.export import release_frame
        from curation_assets.releases.push import folder_of, hub_repository, pack, push_to_hub, push_to_storage
        from curation_resources.progress import track
        from curation_resources.storage.files import FolderStorage
        from curation_resources.storage.object_store import is_object_address
        from curation_resources.terminal import progress_bars, simple_table
        from curation_resources.text import size_text

        storage, place = where(release, config)
        packed = pack(storage, place, release_frame(storage, place)[1])
        repository = hub_repository(to)
        if not go:
            rows = [(packed.relative(file), size_text(file.size)) for file in packed.files]
            console.print(simple_table(f"{packed.name} would be pushed to {to}", ("file", "size"), rows))
            kind = "public" if public else "private"
            beside = f"; a new repository would be {kind}, and other files in it would be deleted" if repository else ""
            console.print(f"{size_text(packed.size)}{beside}; pass --go to push", soft_wrap=True)
            return
        if repository is not None:
            console.print(
                f"pushed {packed.name}: {push_to_hub(packed, repository, private=not public)}", soft_wrap=True
            )
            return
        there = load_workspace(config).storage_at(to) if is_object_address(to) else FolderStorage(folder_of(to, packed))
        with progress_bars(console), track("copying", len(packed.files)) as advance:
            written = push_to_storage(packed, there, advance)
        console.print(f"pushed {packed.name} to {to}: {written} of {len(packed.files)} files written", soft_wrap=True)


def where(release: str, config: Path | None) -> tuple[Storage, str]:
    """Return the storage of a release and its folder there, for a copy or a release in the warehouse.

    Raises:
        DamagedError: the name is neither a folder nor an existing subset or release.
    """
    from curation_resources.storage.files import FolderStorage

    folder = Path(release)
    if folder.is_dir():
        return FolderStorage(folder.resolve().parent), folder.resolve().name
    workspace = load_workspace(config)
    return workspace.warehouse.storage, _place(workspace, release)


def _place(workspace: Workspace, release: str) -> str:
    """Return the folder of a release in the warehouse.

    Raises:
        DamagedError: the subset or release does not exist.
    """
    from curation_assets import tables
    from curation_assets.releases.build import release_numbers

    name, _, number = release.partition("@")
    # Subsets removed from the configuration keep their releases.
    subsets = [subset.name for subset in workspace.settings.subsets]
    known = list(dict.fromkeys([*subsets, *workspace.warehouse.storage.folders("releases")]))
    if name not in known:
        raise DamagedError(f"{release} is not a folder, and {unknown('subset', name, known)}")
    numbers = release_numbers(workspace, name)
    if not numbers:
        raise DamagedError(f"subset {name} has no release yet. Make one with `curate release {name}`.")
    wanted = number or str(numbers[-1])
    if wanted not in map(str, numbers):
        raise DamagedError(
            f"there is no release {release}; releases are {', '.join(f'{name}@{one}' for one in numbers)}"
        )
    return f"{tables.release_dir(name)}/{wanted}"
