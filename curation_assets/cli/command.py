"""What every command of `curate` is made of: its consoles, the option that names the configuration, its errors."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from curation_resources.errors import UserError
from curation_resources.scoring.errors import ScoringError
from curation_resources.text import harmless

if TYPE_CHECKING:
    from curation_assets.workspace.workspace import Workspace

# What is printed may come from anywhere: none of it is markup, or the name of a picture.
console = Console(markup=False, emoji=False)
errors = Console(stderr=True, markup=False, emoji=False)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="The configuration file. Default: what CURATION_CONFIG names, else ./curation.yaml."
    ),
]
INTERRUPTED = 130


class Stop(StrEnum):
    """Where `curate run` can stop."""

    CORPUS = "corpus"
    CHECKPOINTS = "checkpoints"


@contextmanager
def clear_errors(again: str = "curate run") -> Iterator[None]:
    """Show what a user can mend as one message, and what was kept, and what goes on from it, when they interrupt."""
    try:
        yield
    except (UserError, ScoringError) as error:
        errors.print(f"error: {harmless(error)}", style="red", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except BaseException as error:
        if not _is_interrupt(error):
            raise
        errors.print(f"interrupted: what was done so far is kept; `{again}` goes on from there")
        raise typer.Exit(INTERRUPTED) from None


def end_as_interrupted() -> None:
    """Have what ends a job early (the TERM of Slurm and Kubernetes) end this process as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _is_interrupt(error: BaseException) -> bool:
    """Ctrl-C, also as Dagster reports it from inside a step (by name: Dagster is slow to import)."""
    return isinstance(error, KeyboardInterrupt) or type(error).__name__ == "DagsterExecutionInterruptedError"


def load_workspace(config: Path | None) -> Workspace:
    """The workspace of the configuration that a command was given."""
    from curation_assets.workspace.workspace import Workspace

    return Workspace.load(config)
