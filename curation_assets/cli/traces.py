"""Arguments, help and output of `curate report`."""

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
    typer.Argument(metavar="WHAT", help="A subset, a release (SUBSET@N), or the folder of a copy of a release."),
]


class ReportError(UserError):
    """A page cannot be written."""


@commands.command()
def report(
    name: NameArgument = None,
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="OTHER", help="A second one to compare with: shows the samples selected by either or both."
        ),
    ] = None,
    to: Annotated[Path, typer.Option(help="File to write.")] = Path("report.html"),
    most: Annotated[
        int, typer.Option(min=1, help="Maximum number of traces on the page; of more, a sample is drawn.")
    ] = 10_000,
    images: Annotated[bool, typer.Option(help="Embed thumbnails of images in the page.")] = True,
    raw: Annotated[
        bool, typer.Option("--raw", help="Colour steps by the score itself at first; the page can switch.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Write a page of traces: steps coloured by score (adjusted for their position), the reason for each selection,
    and other responses to the prompt.

    The page is one file that works offline and on a phone. For a subset it shows the whole pool, for a release its
    content. The name is optional if the configuration has only one subset.
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
            text = page_text(first, pictures if images else no_pictures, advance, raw=raw)
        try:
            to.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ReportError(f"{to} cannot be written ({error.strerror}). Name another file with --to.") from error
        drawn = "" if first.of == len(first.rows) else f" of {first.of:,}, sampled by prompt"
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
        raise ReportError(f"{workspace.config_file} has no subset to show. Add one under subsets.")
    subset = workspace.settings.subset(pick("subset", name, names))
    return subset_traces(workspace, subset, most, chosen_only=chosen_only), subset_pictures(workspace)


def _either(pictures: Pictures, others: Pictures) -> Pictures:
    """Show samples that only the second one has with its own images."""
    return lambda row: (others if row["member"] == "second" else pictures)(row)
