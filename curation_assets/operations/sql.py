"""SQL over every stored table, by DuckDB in memory: views over Parquet, read-only, and nothing else in reach.

A table that exists once is a view by its own name. What exists once a target lies in a schema of the target's name
(and, with one target, by its own name too); `step_scores` of several scores are `step_scores_SCORE`; subsets are
`subsets.NAME`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import duckdb
import polars as pl

from curation_assets import tables
from curation_assets.subsets.stored_tables import TableRequestError, read_stored, scores_with_steps
from curation_assets.workspace.workspace import Workspace
from curation_resources.errors import UserError

SUBSETS = "subsets"


class SqlError(UserError):
    """A query cannot be answered; the message says why."""


class DuckDBTables:
    """The Dagster resource `duckdb`: every stored table as a view, for assets and checks of one's own.

    Args:
        workspace: whose tables.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def query(self, query: str) -> pl.DataFrame:
        """The rows that one SELECT gives; see `run_sql`."""
        return run_sql(self._workspace, query)

    def views(self) -> list[str]:
        """The views that a query may name."""
        return view_names(self._workspace)


def run_sql(workspace: Workspace, query: str) -> pl.DataFrame:
    """The rows that a query gives.

    Args:
        workspace: whose tables the query may name.
        query: one SELECT in DuckDB's SQL. Files, other databases and extensions are out of its reach.

    Raises:
        SqlError: it is no single SELECT, or DuckDB refuses it.
    """
    with duckdb.connect(":memory:") as connection:
        try:
            statements = connection.extract_statements(query)
            if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
                raise SqlError("give one SELECT: tables are read here, and nothing is written")
            for schema, name, frame in _views(workspace, query):
                rows = f"_{schema}_{name}"
                connection.register(rows, frame)
                connection.execute(f"create schema if not exists {_quoted(schema)}")
                connection.execute(f"create view {_quoted(schema)}.{_quoted(name)} as select * from {_quoted(rows)}")
            connection.execute("set enable_external_access = false")
            connection.execute("set lock_configuration = true")
            found = pl.from_arrow(connection.sql(query).to_arrow_table())
        except duckdb.Error as error:
            empty = ", ".join(_not_stored(workspace, query))
            missing = f"\nnothing is stored yet of {empty} (a pool only where corpus.filters are set)" if empty else ""
            # Whoever misspelt a word of SQL does not look for a table.
            absent = isinstance(error, duckdb.CatalogException)
            views = f"\nviews are {', '.join(view_names(workspace))}" if absent else ""
            raise SqlError(f"{error}{missing}{views}") from error
    assert isinstance(found, pl.DataFrame)
    return found


def view_names(workspace: Workspace) -> list[str]:
    """The views that a query may name, as it names them."""
    return [name if schema == "main" else f"{schema}.{name}" for schema, name, _ in _known(workspace)]


def _views(workspace: Workspace, query: str) -> Iterator[tuple[str, str, pl.LazyFrame]]:
    """Schema, name and rows of the views that a query may mean: those whose name occurs in it."""
    words = {word.lower() for word in re.findall(r"\w+", query)}
    for schema, name, keys in _known(workspace):
        if name.lower() not in words:
            continue
        try:
            yield schema, name, read_stored(workspace, **keys)
        except TableRequestError:
            # Nothing is stored yet: then there is no such view, as DuckDB says.
            continue


def _not_stored(workspace: Workspace, query: str) -> list[str]:
    """The tables that a query may mean and that hold nothing yet."""
    there = {(schema, name) for schema, name, _ in _views(workspace, query)}
    words = {word.lower() for word in re.findall(r"\w+", query)}
    meant = [(schema, name) for schema, name, _ in _known(workspace) if name.lower() in words]
    return sorted({name for schema, name in meant if (schema, name) not in there})


def _known(workspace: Workspace) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Schema and name of every view, and what `read_stored` is asked for."""
    settings = workspace.settings
    of_target = {"score_manifest", "sample_scores", *tables.SIGNAL_TABLES}
    for name in tables.ALL_TABLES:
        if name not in of_target | {"step_scores", "subset"}:
            yield "main", name, {"name": name}
    for target in settings.targets:
        schemas = [target.name] if len(settings.targets) > 1 else ["main", target.name]
        for schema in schemas:
            for name in tables.ALL_TABLES:
                if name in of_target:
                    yield schema, name, {"name": name, "target": target.name}
            scores = scores_with_steps(workspace, target.name)
            for score in scores:
                name = "step_scores" if len(scores) == 1 else f"step_scores_{score}"
                yield schema, name, {"name": "step_scores", "target": target.name, "score": score}
    for subset in settings.subsets:
        yield SUBSETS, subset.name, {"name": "subset", "subset": subset.name}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
