"""The words, options and output of `curate report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from curation_assets.cli.command import ConfigOption, clear_errors, console, load_workspace
from curation_resources.errors import UserError

if TYPE_CHECKING:
    from curation_assets.releases.trace_images import Pictures
    from curation_assets.releases.traces import Traces

commands = typer.Typer()

NameArgument = Annotated[
    str | None,
    typer.Argument(metavar="WHAT", help="A subset, a release (SUBSET@N), or the folder of a copy of one."),
]


class ReportError(UserError):
    """There is nothing that a page could show."""


@commands.command()
def report(
    name: NameArgument = None,
    other: Annotated[
        str | None, typer.Argument(metavar="OTHER", help="Another one, to compare: what both or either chose.")
    ] = None,
    to: Annotated[Path, typer.Option(help="The file to write.")] = Path("report.html"),
    most: Annotated[int, typer.Option(min=1, help="Traces on the page; of more some are drawn.")] = 10_000,
    images: Annotated[bool, typer.Option(help="Put small pictures of images into the page.")] = True,
    config: ConfigOption = None,
) -> None:
    """Write one page that shows traces: steps coloured by score, why each was chosen or not, its prompt's others.

    The page works from a file, offline, on a phone. A subset shows all of its pool; a release what is in it. With one
    subset in the configuration its name may be left out.
    """
    with clear_errors():
        from curation_assets.releases.trace_images import no_pictures
        from curation_assets.releases.trace_page import page_text
        from curation_assets.releases.traces import compared
        from curation_resources.progress import track
        from curation_resources.terminal import progress_bars

        first, pictures = _traces(name, config, most, chosen_only=other is not None)
        if other is not None:
            second, others = _traces(other, config, most, chosen_only=True)
            first, pictures = compared(first, second, most), _either(pictures, others)
        with progress_bars(console), track("laying out traces", len(first.rows)) as advance:
            text = page_text(first, pictures if images else no_pictures, advance)
        try:
            to.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ReportError(f"{to} cannot be written ({error.strerror}): name another file with --to") from error
        drawn = "" if first.of == len(first.rows) else f" of {first.of:,}, drawn prompt by prompt"
        console.print(f"wrote {first.title}, {len(first.rows):,} traces{drawn}, to {to}", soft_wrap=True, markup=False)


def _traces(name: str | None, config: Path | None, most: int, *, chosen_only: bool) -> tuple[Traces, Pictures]:
    from curation_assets.cli.releases import where
    from curation_assets.releases.file_names import MANIFEST
    from curation_assets.releases.trace_images import release_pictures, subset_pictures
    from curation_assets.releases.traces import release_traces, subset_traces
    from curation_assets.subsets.stored_tables import pick

    if name is not None and ("@" in name or (Path(name) / MANIFEST).is_file()):
        storage, place = where(name, config)
        return release_traces(storage, place, None if chosen_only else most), release_pictures(storage, place)
    workspace = load_workspace(config)
    names = [subset.name for subset in workspace.settings.subsets]
    if not names:
        raise ReportError(f"{workspace.config_file} has no subset to show: add one under subsets")
    subset = workspace.settings.subset(pick("subset", name, names))
    return subset_traces(workspace, subset, most, chosen_only=chosen_only), subset_pictures(workspace)


def _either(pictures: Pictures, others: Pictures) -> Pictures:
    """What only the second one has is shown with its own images."""
    return lambda row: (others if row["member"] == "second" else pictures)(row)
