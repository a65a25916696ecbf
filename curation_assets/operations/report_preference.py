"""GRAPE's preference heat map: the generators whose responses each base model prefers (arXiv 2502.04194, figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from curation_assets import tables
from curation_assets.config.settings import Settings, Target
from curation_assets.operations.report_measured import measured_pool, measurements_now
from curation_assets.tables.signals import SignalName
from curation_assets.workspace.workspace import Workspace
from curation_resources.storage.digests import digest

PREFERENCE_VERSION = 1
SIGNAL: SignalName = "likelihoods"
UNKNOWN = "(unknown)"
"""The generator of responses whose rows name none."""

Shares = list[list[float | None]]


class Normalised(NamedTuple):
    """Wins as fractions of their row and of their column; None in rows or columns without wins."""

    of_generator: Shares
    of_target: Shares


def normalisations(counts: Sequence[Sequence[int]]) -> Normalised:
    """Normalise win counts [generator, base model] in both directions; each result is [generator, base model].

    The paper's figure shows the first: rows sum to one, and each cell is the fraction of a generator's wins that a base
    model contributes. In the second, columns sum to one: the fraction of a base model's prompts that a generator wins.

    Raises:
        ValueError: the rows differ in length.
    """
    columns = [sum(column) for column in zip(*counts, strict=True)]
    rows = [sum(row) for row in counts]
    return Normalised(
        [[_share(count, total) for count in row] for row, total in zip(counts, rows, strict=True)],
        [[_share(count, total) for count, total in zip(row, columns, strict=True)] for row in counts],
    )


def measuring_targets(settings: Settings) -> list[Target]:
    """Return the targets that measure likelihoods: one base model each."""
    return [target for target in settings.targets if SIGNAL in target.signals]


def wanted_preference(workspace: Workspace) -> str | None:
    """Return the fingerprint that the table should have, given manifests, measurements and filters.

    Return None if no target has a manifest yet, or if the pool's filters have not been applied.
    """
    found = measurements_now(workspace, measuring_targets(workspace.settings), SIGNAL)
    return None if found is None else digest("preference", PREFERENCE_VERSION, *found)


def write_preference(workspace: Workspace) -> pl.DataFrame:
    """Count the wins and write table `preference`."""
    # Compute it before reading: changes made in the meantime then mark the table as outdated.
    fingerprint = str(wanted_preference(workspace))
    frame = preference(workspace)
    workspace.warehouse.write_table(tables.preference_path(), frame, {"fingerprint": fingerprint})
    return frame


def preference(workspace: Workspace) -> pl.DataFrame:
    """Compute table `preference` from the stored tables: each generator with each target that measured."""
    measured = {target.name: _measured(workspace, target) for target in measuring_targets(workspace.settings)}
    several = {name: _several(rows) for name, rows in measured.items() if rows is not None}
    generators = sorted({generator for rows in several.values() for generator in rows["generator"]})
    wins = {name: dict(winners(rows)["generator"].value_counts().iter_rows()) for name, rows in several.items()}
    counts = [[wins[name].get(generator, 0) for name in several] for generator in generators]
    shares = normalisations(counts)
    rows = [
        (generator, name, counts[y][x], shares.of_generator[y][x], shares.of_target[y][x], sum(wins[name].values()))
        for y, generator in enumerate(generators)
        for x, name in enumerate(several)
    ]
    return tables.PREFERENCE.conform(pl.DataFrame(rows, schema=tables.PREFERENCE.schema, orient="row"))


def winners(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the row of lowest perplexity for each prompt, ties broken by sample_id.

    Args:
        rows: prompt_id, sample_id and mean_nll [nats, finite] of distinct samples.
    """
    return rows.sort("mean_nll", "sample_id").unique("prompt_id", keep="first").sort("prompt_id")


def matrix(frame: pl.DataFrame, column: str) -> tuple[Shares, list[str], list[str]]:
    """Return a column of the table as a matrix: values by generator and target, and their names."""
    generators, targets = (frame[name].unique(maintain_order=True).to_list() for name in ("generator", "target"))
    rows = frame.select("generator", "target", column).iter_rows()
    cells = {(generator, target): value for generator, target, value in rows}
    return [[cells[generator, target] for target in targets] for generator in generators], generators, targets


def _measured(workspace: Workspace, target: Target) -> pl.DataFrame | None:
    """Return ids, generator and mean NLL of each pool sample that the target measured; None before it has scores."""
    found = measured_pool(workspace, target, SIGNAL, ("mean_nll",), ("prompt_id", "generator"))
    if found is None:
        return None
    return found.with_columns(pl.col("generator").fill_null(UNKNOWN)).filter(pl.col("mean_nll").is_finite())


def _several(rows: pl.DataFrame) -> pl.DataFrame:
    """Keep the samples whose prompt has several measured responses; a single response would always win."""
    return rows.filter(pl.len().over("prompt_id") > 1)


def _share(count: int, total: int) -> float | None:
    return count / total if total else None
