"""Common parts of all `curate` commands: consoles, the configuration option, and error handling."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from curation_resources.errors import UserError, in_a_line
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
FULL_TEXTS = ("No space left on device", "Disk quota exceeded", "database or disk is full")
"""Parts of messages about a full disk, of the operating system and of SQLite."""


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
        if is_disk_full(error):
            errors.print(
                f"error: no space is left on the device ({harmless(_full_place(error))}). Free some space, or set "
                f"warehouse or TMPDIR to another disk. Finished work is kept. To resume: `{again}`",
                style="red",
                highlight=False,
                soft_wrap=True,
            )
            raise typer.Exit(1) from None
        if not _is_interrupt(error):
            raise
        errors.print(f"interrupted; finished work is kept. To resume: `{again}`")
        raise typer.Exit(INTERRUPTED) from None


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one that it was raised from, is about a full disk or a quota.

    Libraries in other languages report it only as text.
    """
    return any(_says_full(one) for one in _chain(error))


def _says_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return isinstance(error, Exception) and any(text in str(error) for text in FULL_TEXTS)


def _full_place(error: BaseException) -> str:
    """Return the file that could not be written, or the message about it."""
    found = next(one for one in _chain(error) if _says_full(one))
    name = getattr(found, "filename", None)
    return str(name) if name else in_a_line(found) if isinstance(found, Exception) else type(found).__name__


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


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
