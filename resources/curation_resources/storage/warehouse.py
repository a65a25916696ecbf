"""The warehouse: tables as Parquet and JSON in a folder or in S3, written atomically.

It handles paths, frames and footers; `curation_assets.tables` defines the meaning of tables, and
`curation_resources.storage.files` holds the files. All paths are relative to its root, with `/`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import polars as pl

from curation_resources.errors import UserError
from curation_resources.storage.digests import DigestCache
from curation_resources.storage.files import FolderStorage, Storage, StorageError, StoredFile
from curation_resources.storage.table_writer import TableWriter

SCHEMA_VERSION = 1
VERSION_FILE = "warehouse.json"
TABLE = ".parquet"
DOCUMENT = ".json"
DAMAGED = "damaged"
"""Folder for damaged files that were set aside."""

T = TypeVar("T")
R = TypeVar("R")


class WarehouseError(UserError):
    """The warehouse cannot be used; the message states the fix."""


class Warehouse:
    """Tables below one root. Readers never see a half-written file, and writers never share one.

    Args:
        storage: holds the files; a path is a local folder.
        cache: hashes of the files in a folder, for detecting damage; S3 checks its objects itself.
    """

    def __init__(self, storage: Storage | Path, cache: DigestCache | None = None) -> None:
        self.storage = FolderStorage(storage) if isinstance(storage, Path) else storage
        self._cache = cache if isinstance(self.storage, FolderStorage) else None
        self._footers: dict[str, tuple[str, dict[str, str]]] = {}
        self._documents: dict[str, tuple[str, Any]] = {}

    @property
    def root(self) -> Path:
        """The folder of a warehouse in a folder."""
        assert isinstance(self.storage, FolderStorage)
        return self.storage.root

    def prepare(self) -> None:
        """Create the root and its version file.

        Raises:
            WarehouseError: the place cannot be used, or was created by another version of the schema.
        """
        place = self.storage.place
        try:
            self.storage.prepare()
            text = self.read_text(VERSION_FILE)
            if text is None:
                self.storage.create(VERSION_FILE, json.dumps({"schema_version": SCHEMA_VERSION}).encode())
                text = self.storage.read(VERSION_FILE).decode()
            document = json.loads(text)
        except (OSError, StorageError) as error:
            raise WarehouseError(
                f"{place} cannot be used as a warehouse ({error}). Correct warehouse in curation.yaml."
            ) from error
        except ValueError as error:
            raise WarehouseError(
                f"{self.storage.shown(VERSION_FILE)} is not JSON ({error}). Restore it, or name another warehouse "
                "in curation.yaml."
            ) from error
        found = document.get("schema_version") if isinstance(document, dict) else None
        if found != SCHEMA_VERSION:
            raise WarehouseError(
                f"{place} has warehouse schema {found}, but this version reads {SCHEMA_VERSION}. "
                "Name another warehouse in curation.yaml, or use the version that created this one."
            )

    # Tables

    def write_table(self, path: str, frame: pl.DataFrame, metadata: Mapping[str, str]) -> None:
        """Write a table with its footer metadata, replacing an existing one."""
        self.storage.write(path, parquet_bytes(frame, metadata))

    @contextmanager
    def writing_table(self, path: str, schema: Mapping[str, Any]) -> Iterator[TableWriter]:
        """Yield a writer for a table in chunks; the table is replaced if the block ends without an error."""
        with self.storage.writing(path) as file, TableWriter(file, schema) as table:
            yield table

    def read_table(self, path: str) -> pl.DataFrame:
        """Read a whole table.

        Raises:
            FileNotFoundError: there is no such table.
            WarehouseError: it is damaged.
        """
        # Polars opens a path twice, and a writer may replace the file in between; a stream keeps one version.
        with self._opened(path) as stream:
            return pl.read_parquet(stream)

    def read_columns(self, path: str, *columns: str) -> pl.DataFrame:
        """Read some columns of a table; see `read_table`."""
        with self._opened(path) as stream:
            return pl.read_parquet(stream, columns=list(columns))

    def columns(self, path: str) -> list[str]:
        """Return the names of a table's columns, from its footer; see `read_table`."""
        with self._footer(path) as stream:
            return list(pl.read_parquet_schema(stream))

    def table_metadata(self, path: str) -> dict[str, str]:
        """Return the metadata in a table's footer; empty if there is no such table.

        For a damaged table, return only `damaged`: it matches no fingerprint, so the table is made again.
        """
        try:
            with self._footer(path) as stream:
                metadata = pl.read_parquet_metadata(stream)
        except FileNotFoundError:
            return {}
        except WarehouseError as error:
            return {"damaged": str(error)}
        return {key: value for key, value in metadata.items() if not key.startswith("ARROW:")}

    def folder_metadata(self, folder: str) -> dict[str, dict[str, str]]:
        """Return the footer metadata of every table in a folder, by file name without suffix.

        Files that have not changed since the last call are not read.
        """
        return self._of_folder(folder, TABLE, self._cached_metadata)

    def _of_folder(self, folder: str, suffix: str, read: Callable[[StoredFile], R]) -> dict[str, R]:
        """Return the result of `read` for each file of a kind in a folder, by name without suffix."""
        found = [file for file in self.storage.files(folder) if file.name.endswith(suffix)]
        return dict(zip((file.name.removesuffix(suffix) for file in found), self._each(read, found), strict=True))

    def _cached_metadata(self, file: StoredFile) -> dict[str, str]:
        version, metadata = self._footers.get(file.path, ("", {}))
        if version != file.version:
            metadata = self.table_metadata(file.path)
            self._footers[file.path] = (file.version, metadata)
        return metadata

    def _each(self, read: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Return the result of `read` for each item, running several at a time if the storage benefits from it."""
        if self.storage.at_once == 1 or len(items) < 2:
            return [read(item) for item in items]
        with ThreadPoolExecutor(min(self.storage.at_once, len(items))) as pool:
            # Run each in the caller's context, so that all share its read cache.
            return list(pool.map(lambda item, context: context.run(read, item), items, [copy_context() for _ in items]))

    def names(self, folder: str) -> list[str]:
        """Return the names, without suffix, of the tables in a folder, sorted."""
        return self._names(folder, TABLE)

    def scan(self, folder: str, names: Iterable[str] | None = None) -> pl.LazyFrame | None:
        """Return a lazy frame over the tables of a folder, or those with the given names; None if there are none."""
        present = self.names(folder)
        wanted = present if names is None else sorted(set(present) & set(names))
        if not wanted:
            return None
        return self.scan_all([f"{folder}/{name}{TABLE}" for name in wanted])

    def scan_table(self, path: str) -> pl.LazyFrame | None:
        """Return a lazy frame over one table, or None if there is no such table."""
        return self.scan_all([path]) if self.storage.exists(path) else None

    def scan_all(self, paths: list[str]) -> pl.LazyFrame:
        """Return a lazy frame over tables that must all exist.

        Raises:
            FileNotFoundError: one of them does not exist.
        """
        # Without a schema, Polars opens the first file twice, and a writer may replace it in between. Tables with open
        # columns may
        # differ in these while they are rebuilt, so a scan has the columns of all tables.
        schema: dict[str, pl.DataType] = {}
        for one in self._each(self._schema, paths):
            schema |= one
        return self.storage.scan_parquet(paths, schema)

    def _schema(self, path: str) -> dict[str, pl.DataType]:
        with self._footer(path) as stream:
            return dict(pl.read_parquet_schema(stream))

    def _opened(self, path: str) -> AbstractContextManager[BinaryIO]:
        return _named(self.storage.open(path), self.storage.shown(path))

    def _footer(self, path: str) -> AbstractContextManager[BinaryIO]:
        return _named(self.storage.open_end(path), self.storage.shown(path))

    # Small documents

    def write_json(self, path: str, document: Any) -> None:
        """Write a JSON document, replacing an existing one."""
        self.storage.write(path, json.dumps(document, indent=1, sort_keys=True).encode())

    def read_json(self, path: str) -> Any:
        """Return a JSON document, or None if it does not exist."""
        text = self.read_text(path)
        return None if text is None else json.loads(text)

    def folder_documents(self, folder: str) -> dict[str, Any]:
        """Return the JSON documents in a folder, by name without suffix; unchanged ones are not read again."""
        found = self._of_folder(folder, DOCUMENT, self._document)
        return {name: document for name, document in found.items() if document is not None}

    def _document(self, file: StoredFile) -> Any:
        version, document = self._documents.get(file.path, ("", None))
        if version != file.version:
            # A document that was removed meanwhile counts as missing.
            document = self.read_json(file.path)
            self._documents[file.path] = (file.version, document)
        return document

    def documents(self, folder: str) -> list[str]:
        """Return the names, without suffix, of the JSON documents in a folder, sorted."""
        return self._names(folder, DOCUMENT)

    def _names(self, folder: str, suffix: str) -> list[str]:
        return sorted(name.removesuffix(suffix) for name in self.storage.names(folder) if name.endswith(suffix))

    def files(self, folder: str) -> list[StoredFile]:
        """Return all files below a folder."""
        return self.storage.walk(folder)

    # Things created once

    def write_once(self, path: str, data: bytes) -> None:
        """Write a file that is named by its content, unless it exists."""
        if not self.storage.exists(path):
            self.storage.write(path, data)

    def create_folder(self, path: str, fill: Callable[[Path], None], last: str) -> bool:
        """Create a folder atomically; return False, without changes, if it exists already.

        Args:
            path: the folder.
            fill: writes the contents into the temporary folder that it is given.
            last: the file whose presence marks the folder as complete.
        """
        return self.storage.make_folder(path, fill, last)

    def made_folders(self, folder: str, last: str) -> list[str]:
        """Return the names of the complete folders in a folder, sorted."""
        return [name for name in self.storage.folders(folder) if self.storage.exists(f"{folder}/{name}/{last}")]

    # Files that are named by their content

    def write_named(self, path: str, data: bytes, content: str) -> None:
        """Write a file whose bytes have the hash `content`."""
        self.storage.write(path, data)
        if self._cache is not None:
            self._cache.remember(self.local(path), content)

    def damaged(self, paths: Mapping[str, str]) -> list[str]:
        """Return the files whose bytes do not match the given hash; unchanged files are not read again."""
        if self._cache is None:
            return []
        found = []
        for path, content in paths.items():
            # A missing file is not damaged.
            with suppress(FileNotFoundError):
                if self._cache.file_digest(self.local(path)) != content:
                    found.append(path)
        self._cache.save()
        return found

    def set_aside(self, path: str) -> str:
        """Move a file out of the way for inspection; return its new path."""
        aside = f"{DAMAGED}/{path}"
        self.storage.write(aside, self.storage.read(path))
        self.storage.remove(path)
        return aside

    # Small texts

    def compare_and_swap(self, path: str, expected: str | None, new: str) -> bool:
        """Replace a small text if it still equals `expected` (None: does not exist); return False if it does not."""
        return self.storage.swap(path, None if expected is None else expected.encode(), new.encode())

    def read_text(self, path: str) -> str | None:
        """Return a small text, or None if it does not exist."""
        try:
            return self.storage.read(path).decode()
        except FileNotFoundError:
            return None

    def local(self, path: str) -> Path:
        """Return a local path for an immutable file or folder.

        Raises:
            FileNotFoundError: it does not exist.
        """
        return self.storage.local(path)


@contextmanager
def _named(opened: AbstractContextManager[BinaryIO], shown: str) -> Iterator[BinaryIO]:
    """Open a Parquet file; Polars' errors about a damaged file become an error that names it."""
    with opened as stream:
        try:
            yield stream
        except pl.exceptions.ComputeError as error:
            raise WarehouseError(
                f"{shown} is damaged ({error}). Delete it, and the next run writes it again."
            ) from error


def parquet_bytes(frame: pl.DataFrame, metadata: Mapping[str, str]) -> bytes:
    """Return a table's bytes as the warehouse writes them."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", metadata=dict(metadata))
    return buffer.getvalue()
