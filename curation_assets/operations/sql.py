"""Query every stored table with SQL, through DuckDB in memory: read-only views over Parquet, with no other access.

A table that exists once is a view of the same name. A table that exists once per target lies in a schema named after
the target (and, with a single target, in the main schema too). `step_scores` of several scores are
`step_scores_SCORE`; subsets are `subsets.NAME`.
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
    """A query failed; the message gives the reason."""


class DuckDBTables:
    """The Dagster resource `duckdb`: every stored table as a view, for your own assets and checks.

    Args:
        workspace: the workspace whose tables are queried.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def query(self, query: str) -> pl.DataFrame:
        """Return the rows of one SELECT; see `run_sql`."""
        return run_sql(self._workspace, query)

    def views(self) -> list[str]:
        """Return the names of the available views."""
        return view_names(self._workspace)


def run_sql(workspace: Workspace, query: str) -> pl.DataFrame:
    """Return the rows of a query.

    Args:
        workspace: the workspace whose tables the query may use.
        query: one SELECT in DuckDB's SQL. It cannot access files, other databases or extensions.

    Raises:
        SqlError: the query is not a single SELECT, or DuckDB rejects it.
    """
    with duckdb.connect(":memory:") as connection:
        try:
            statements = connection.extract_statements(query)
            if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
                raise SqlError(
                    "the query is not a single SELECT. Tables are read-only here: give one SELECT statement."
                )
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
            missing = (
                f"\nNo rows are stored yet for {empty} (a pool exists only if corpus.filters are set)." if empty else ""
            )
            # A syntax error does not need the list of tables.
            absent = isinstance(error, duckdb.CatalogException)
            views = f"\nAvailable views: {', '.join(view_names(workspace))}" if absent else ""
            raise SqlError(f"{error}{missing}{views}") from error
    assert isinstance(found, pl.DataFrame)
    return found


def view_names(workspace: Workspace) -> list[str]:
    """Return the names of the available views, as a query spells them."""
    return [name if schema == "main" else f"{schema}.{name}" for schema, name, _ in _known(workspace)]


def _views(workspace: Workspace, query: str) -> Iterator[tuple[str, str, pl.LazyFrame]]:
    """Yield schema, name and rows of the views whose name occurs in the query."""
    words = {word.lower() for word in re.findall(r"\w+", query)}
    for schema, name, keys in _known(workspace):
        if name.lower() not in words:
            continue
        try:
            yield schema, name, read_stored(workspace, **keys)
        except TableRequestError:
            # Nothing is stored yet, so there is no view; DuckDB reports that.
            continue


def _not_stored(workspace: Workspace, query: str) -> list[str]:
    """Return the tables whose name occurs in the query and that have no stored rows."""
    there = {(schema, name) for schema, name, _ in _views(workspace, query)}
    words = {word.lower() for word in re.findall(r"\w+", query)}
    meant = [(schema, name) for schema, name, _ in _known(workspace) if name.lower() in words]
    return sorted({name for schema, name in meant if (schema, name) not in there})


def _known(workspace: Workspace) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield schema and name of every view, and the arguments of `read_stored` for it."""
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
