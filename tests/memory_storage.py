"""Dagster's storage in memory, with less work per statement: a run of the main job makes hundreds of them.

Dagster opens a connection for every statement, sets pragmas that have no effect in memory, and asks SQLite for the
columns of tables that it has just created. Here each storage keeps one connection, and the answers are known. Events,
runs and partitions are stored by Dagster's own code. Instances on disk and in PostgreSQL are not affected.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import dagster._core.storage.event_log.in_memory as events
import dagster._core.storage.runs.in_memory as runs
from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
from sqlalchemy.engine import Connection

EventStorage, RunStorage = events.InMemoryEventLogStorage, runs.InMemoryRunStorage
PRESENT = {
    EventStorage: (
        "has_asset_key_col",
        "has_asset_key_index_cols",
        "has_default_pool_limit_col",
        "_has_asset_key_col_on_connection",
    ),
    RunStorage: (
        "has_run_stats_index_cols",
        "has_bulk_actions_selector_cols",
        "has_backfill_id_column",
        "has_bulk_action_job_name_column",
        "has_backfill_tags_table",
    ),
}
"""Questions about columns and tables, all of which a new database has."""

_replaced: list[tuple[Any, str, Any]] = []


def lighten() -> None:
    """Make the instances of `DagsterInstance.ephemeral` lighter from now on."""
    if _replaced:
        return
    for storage, questions in PRESENT.items():
        for question in questions:
            _replace(storage, question, lambda *_args: True)
        _replace(storage, "__init__", _noting_thread(vars(storage)["__init__"]))
    _replace(EventStorage, "has_table", lambda _self, name: name in SqlEventLogStorageMetadata.tables)
    _replace(EventStorage, "_connect", _kept(EventStorage._connect))
    _replace(RunStorage, "connect", _kept(RunStorage.connect))
    # The revision of the tables matters to migrations only.
    for module in (events, runs):
        _replace(module, "stamp_alembic_rev", lambda *_args, **_kwargs: None)


def restore() -> None:
    """Have new instances work as Dagster's own."""
    while _replaced:
        owner, name, value = _replaced.pop()
        setattr(owner, name, value)


def _replace(owner: Any, name: str, value: Any) -> None:
    _replaced.append((owner, name, getattr(owner, name)))
    setattr(owner, name, value)


def _noting_thread(init: Any) -> Any:
    def noting(self: Any, *args: Any, **kwargs: Any) -> None:
        self.thread_of_connection = threading.get_ident()
        init(self, *args, **kwargs)

    return noting


def _kept(connect: Any) -> Any:
    """Return a method that gives the connection which the storage keeps, where that can be used."""

    @contextmanager
    def kept(self: Any) -> Iterator[Connection]:
        held: Connection = self._held_conn
        # SQLite's connections belong to a thread, and one inside a transaction is in use.
        if self.thread_of_connection != threading.get_ident() or held.in_transaction():
            other: AbstractContextManager[Connection] = connect(self)
            with other as connection:
                yield connection
        else:
            with getattr(self, "_db_lock", nullcontext()), held.begin():
                yield held

    return kept
