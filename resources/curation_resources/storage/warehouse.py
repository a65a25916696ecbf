"""How tables are kept: Parquet and JSON in a folder or in S3, written whole or not at all.

The warehouse knows paths, frames and footers; what the tables mean is `curation_assets.tables`, and what holds the
files is `curation_resources.storage.files`. All paths are relative to its root, with `/`.
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
"""Folder of files that were set aside."""

T = TypeVar("T")
R = TypeVar("R")


class WarehouseError(UserError):
    """The warehouse cannot be used as it is; the message says how to mend it."""


class Warehouse:
    """Tables below one root. Readers never see a half-written file, and writers never share one.

    Args:
        storage: what holds the files; a path is a folder of this machine.
        cache: hashes of the files of a folder, by which damage is noticed; S3 looks after its objects itself.
    """

    def __init__(self, storage: Storage | Path, cache: DigestCache | None = None) -> None:
        self.storage = FolderStorage(storage) if isinstance(storage, Path) else storage
        self._cache = cache if isinstance(self.storage, FolderStorage) else None
        self._footers: dict[str, tuple[str, dict[str, str]]] = {}
        self._documents: dict[str, tuple[str, Any]] = {}

    @property
    def root(self) -> Path:
        """The folder of a warehouse that is one."""
        assert isinstance(self.storage, FolderStorage)
        return self.storage.root

    def prepare(self) -> None:
        """Make the root and its version file.

        Raises:
            WarehouseError: the place cannot be used, or was made by another version of the schema.
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
                f"{place} cannot be used as a warehouse ({error}): correct warehouse in curation.yaml"
            ) from error
        except ValueError as error:
            raise WarehouseError(
                f"{self.storage.shown(VERSION_FILE)} is not JSON ({error}): restore it, or name another warehouse in "
                "curation.yaml"
            ) from error
        found = document.get("schema_version") if isinstance(document, dict) else None
        if found != SCHEMA_VERSION:
            raise WarehouseError(
                f"{place} has warehouse schema {found}, this version reads {SCHEMA_VERSION}: "
                "name another warehouse in curation.yaml, or use the version that made this one"
            )

    # Tables

    def write_table(self, path: str, frame: pl.DataFrame, metadata: Mapping[str, str]) -> None:
        """Write a table with its footer metadata, replacing what was there."""
        self.storage.write(path, parquet_bytes(frame, metadata))

    @contextmanager
    def writing_table(self, path: str, schema: Mapping[str, Any]) -> Iterator[TableWriter]:
        """A table to be written piece by piece; it replaces what was there when the block ends without an error."""
        with self.storage.writing(path) as file, TableWriter(file, schema) as table:
            yield table

    def read_table(self, path: str) -> pl.DataFrame:
        """Read a whole table.

        Raises:
            FileNotFoundError: there is none.
            WarehouseError: it is damaged.
        """
        # Polars opens a path twice, and a writer may replace the file in between; a stream stays with one state.
        with self._opened(path) as stream:
            return pl.read_parquet(stream)

    def read_columns(self, path: str, *columns: str) -> pl.DataFrame:
        """Read some columns of a table; see `read_table`."""
        with self._opened(path) as stream:
            return pl.read_parquet(stream, columns=list(columns))

    def columns(self, path: str) -> list[str]:
        """Names of a table's columns, from its footer; see `read_table`."""
        with self._footer(path) as stream:
            return list(pl.read_parquet_schema(stream))

    def table_metadata(self, path: str) -> dict[str, str]:
        """The metadata in a table's footer; empty if there is no such table.

        Of a damaged table only `damaged` is told: whatever fingerprint is wanted, it is due to be made again.
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
        """Footer metadata of every table in a folder, by file name without suffix.

        Of a file that is as it was at the last call nothing is read.
        """
        return self._of_folder(folder, TABLE, self._told)

    def _of_folder(self, folder: str, suffix: str, read: Callable[[StoredFile], R]) -> dict[str, R]:
        """What reading gives of each file of a kind in a folder, by name without suffix."""
        found = [file for file in self.storage.files(folder) if file.name.endswith(suffix)]
        return dict(zip((file.name.removesuffix(suffix) for file in found), self._each(read, found), strict=True))

    def _told(self, file: StoredFile) -> dict[str, str]:
        version, metadata = self._footers.get(file.path, ("", {}))
        if version != file.version:
            metadata = self.table_metadata(file.path)
            self._footers[file.path] = (file.version, metadata)
        return metadata

    def _each(self, read: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """What reading gives of each item, several at the same time where that is faster."""
        if self.storage.at_once == 1 or len(items) < 2:
            return [read(item) for item in items]
        with ThreadPoolExecutor(min(self.storage.at_once, len(items))) as pool:
            # Each with the caller's context: what one look remembers counts for all of them.
            return list(pool.map(lambda item, context: context.run(read, item), items, [copy_context() for _ in items]))

    def names(self, folder: str) -> list[str]:
        """Names, without suffix, of the tables in a folder, sorted."""
        return self._names(folder, TABLE)

    def scan(self, folder: str, names: Iterable[str] | None = None) -> pl.LazyFrame | None:
        """Lazy frame over the tables of a folder (of the given names only), or None if there are none."""
        present = self.names(folder)
        wanted = present if names is None else sorted(set(present) & set(names))
        if not wanted:
            return None
        return self.scan_all([f"{folder}/{name}{TABLE}" for name in wanted])

    def scan_table(self, path: str) -> pl.LazyFrame | None:
        """Lazy frame over one table, or None if there is no such table."""
        return self.scan_all([path]) if self.storage.exists(path) else None

    def scan_all(self, paths: list[str]) -> pl.LazyFrame:
        """Lazy frame over tables that must all be there.

        Raises:
            FileNotFoundError: one of them is not.
        """
        # Without a schema, Polars opens the first file twice, and a writer may replace it in between. Tables
        # with open columns differ in these while they are made anew: a scan has the columns of all of them.
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
        """Write a JSON document, replacing what was there."""
        self.storage.write(path, json.dumps(document, indent=1, sort_keys=True).encode())

    def read_json(self, path: str) -> Any:
        """A JSON document, or None if there is none."""
        text = self.read_text(path)
        return None if text is None else json.loads(text)

    def folder_documents(self, folder: str) -> dict[str, Any]:
        """The JSON documents in a folder, by name without suffix; what is as it was at the last call is not read."""
        found = self._of_folder(folder, DOCUMENT, self._document)
        return {name: document for name, document in found.items() if document is not None}

    def _document(self, file: StoredFile) -> Any:
        version, document = self._documents.get(file.path, ("", None))
        if version != file.version:
            # One that went meanwhile is none.
            document = self.read_json(file.path)
            self._documents[file.path] = (file.version, document)
        return document

    def documents(self, folder: str) -> list[str]:
        """Names, without suffix, of the JSON documents in a folder, sorted."""
        return self._names(folder, DOCUMENT)

    def _names(self, folder: str, suffix: str) -> list[str]:
        return sorted(name.removesuffix(suffix) for name in self.storage.names(folder) if name.endswith(suffix))

    def files(self, folder: str) -> list[StoredFile]:
        """All files below a folder."""
        return self.storage.walk(folder)

    # Things made once

    def write_once(self, path: str, data: bytes) -> None:
        """Write a file that is named by its content: if it is there, it is the same."""
        if not self.storage.exists(path):
            self.storage.write(path, data)

    def create_folder(self, path: str, fill: Callable[[Path], None], last: str) -> bool:
        """Create a folder whole, or not at all; False if it exists already (and nothing is changed).

        Args:
            path: the folder.
            fill: writes the contents into the temporary folder that it is given.
            last: the file in it that makes it whole.
        """
        return self.storage.make_folder(path, fill, last)

    def made_folders(self, folder: str, last: str) -> list[str]:
        """Names of the folders in a folder that are whole, sorted."""
        return [name for name in self.storage.folders(folder) if self.storage.exists(f"{folder}/{name}/{last}")]

    # Files that are named by their content

    def write_named(self, path: str, data: bytes, content: str) -> None:
        """Write a file whose bytes have the hash `content`."""
        self.storage.write(path, data)
        if self._cache is not None:
            self._cache.remember(self.local(path), content)

    def damaged(self, paths: Mapping[str, str]) -> list[str]:
        """Those of the files whose bytes do not have the hash that is given; what has not changed is not read."""
        if self._cache is None:
            return []
        found = []
        for path, content in paths.items():
            # One that is gone is not damaged.
            with suppress(FileNotFoundError):
                if self._cache.file_digest(self.local(path)) != content:
                    found.append(path)
        self._cache.save()
        return found

    def set_aside(self, path: str) -> str:
        """Move a file out of the way, to be looked at by a person; gives its new path."""
        aside = f"{DAMAGED}/{path}"
        self.storage.write(aside, self.storage.read(path))
        self.storage.remove(path)
        return aside

    # Small texts

    def compare_and_swap(self, path: str, expected: str | None, new: str) -> bool:
        """Replace a small text if it still reads `expected` (None: does not exist); False if it does not."""
        return self.storage.swap(path, None if expected is None else expected.encode(), new.encode())

    def read_text(self, path: str) -> str | None:
        """A small text, or None if there is none."""
        try:
            return self.storage.read(path).decode()
        except FileNotFoundError:
            return None

    def local(self, path: str) -> Path:
        """A file or folder that never changes as one on this machine's disk.

        Raises:
            FileNotFoundError: there is none.
        """
        return self.storage.local(path)


@contextmanager
def _named(opened: AbstractContextManager[BinaryIO], shown: str) -> Iterator[BinaryIO]:
    """A Parquet file to be read; what Polars says of a damaged one becomes an error that names it."""
    with opened as stream:
        try:
            yield stream
        except pl.exceptions.ComputeError as error:
            raise WarehouseError(f"{shown} is damaged ({error}): delete it, and it is made again when due") from error


def parquet_bytes(frame: pl.DataFrame, metadata: Mapping[str, str]) -> bytes:
    """A table as the warehouse writes it."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", metadata=dict(metadata))
    return buffer.getvalue()
