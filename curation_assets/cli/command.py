"""Common parts of all `curate` commands: consoles, the configuration option, and error handling."""

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

# Printed text may come from anywhere, so neither markup nor emoji names in it are interpreted.
console = Console(markup=False, emoji=False)
errors = Console(stderr=True, markup=False, emoji=False)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="Configuration file. Default: the one in CURATION_CONFIG, else ./curation.yaml."
    ),
]
INTERRUPTED = 130


class Stop(StrEnum):
    """Stages after which `curate run` can stop."""

    CORPUS = "corpus"
    CHECKPOINTS = "checkpoints"


@contextmanager
def clear_errors(again: str = "curate run") -> Iterator[None]:
    """Print user errors as one message; on an interrupt, print the command that resumes the work."""
    try:
        yield
    except (UserError, ScoringError) as error:
        errors.print(f"error: {harmless(error)}", style="red", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except BaseException as error:
        if not _is_interrupt(error):
            raise
        errors.print(f"interrupted; finished work is kept. To resume: `{again}`")
        raise typer.Exit(INTERRUPTED) from None


def end_as_interrupted() -> None:
    """Let SIGTERM, which Slurm and Kubernetes send to end a job early, end this process as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _is_interrupt(error: BaseException) -> bool:
    """Return whether an error is Ctrl-C, also as Dagster reports it from a step (by name: Dagster is slow to
    import)."""
    return isinstance(error, KeyboardInterrupt) or type(error).__name__ == "DagsterExecutionInterruptedError"


def load_workspace(config: Path | None) -> Workspace:
    """Return the workspace of the configuration given to a command."""
    from curation_assets.workspace.workspace import Workspace

    return Workspace.load(config)
